//! A queue of small numbers in an array: threads that can run, or that sleep.

/// At most `N` numbers, first in, first out.
#[derive(Clone, Debug)]
pub struct Fifo<const N: usize> {
    items: [u16; N],
    len: usize,
}

impl<const N: usize> Fifo<N> {
    /// An empty queue.
    #[must_use]
    pub const fn new() -> Self {
        assert!(N <= 1 << 16, "numbers have 16 bits");
        Self { items: [0; N], len: 0 }
    }

    /// True when nothing is in it.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Adds a number at the end.
    ///
    /// # Panics
    /// When the queue is full, or the number is too large.
    pub fn push(&mut self, number: usize) {
        assert!(
            self.len < N && number < 1 << 16,
            "the queue holds {} of {N}, and {number} is added",
            self.len
        );
        self.items[self.len] = number as u16;
        self.len += 1;
    }

    /// The numbers, first come first.
    pub fn iter(&self) -> impl Iterator<Item = usize> {
        self.items[..self.len].iter().map(|&item| usize::from(item))
    }

    /// Takes the first number.
    pub fn pop(&mut self) -> Option<usize> {
        self.take_first(|_| true)
    }

    /// Takes the first number that is wanted.
    pub fn take_first(&mut self, wanted: impl Fn(usize) -> bool) -> Option<usize> {
        let at = self.items[..self.len].iter().position(|&item| wanted(usize::from(item)))?;
        let item = usize::from(self.items[at]);
        self.items.copy_within(at + 1..self.len, at);
        self.len -= 1;
        Some(item)
    }
}

impl<const N: usize> Default for Fifo<N> {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::VecDeque;

    proptest! {
        #[test]
        fn it_agrees_with_a_deque(steps in prop::collection::vec((0u8..4, 0usize..16), 0..200)) {
            let (mut fifo, mut model) = (Fifo::<8>::new(), VecDeque::new());
            for (step, number) in steps {
                match step {
                    0 | 1 if model.len() < 8 => {
                        fifo.push(number);
                        model.push_back(number);
                    }
                    2 => prop_assert_eq!(fifo.pop(), model.pop_front()),
                    _ => {
                        let at = model.iter().position(|&n| n % 4 == number % 4);
                        let expected = at.and_then(|at| model.remove(at));
                        prop_assert_eq!(fifo.take_first(|n| n % 4 == number % 4), expected);
                    }
                }
                prop_assert_eq!(fifo.is_empty(), model.is_empty());
            }
        }
    }
}
