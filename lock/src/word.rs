//! The word that a lock is.

use core::sync::atomic::{AtomicU32, Ordering};

/// An atomic word of 32 bits: the real one, or one that a test watches.
pub trait Word: Sync {
    /// A word that is `value`.
    fn new(value: u32) -> Self;
    /// What it is.
    fn load(&self, order: Ordering) -> u32;
    /// Makes it `value`.
    fn store(&self, value: u32, order: Ordering);
    /// Adds; what it was.
    fn fetch_add(&self, n: u32, order: Ordering) -> u32;
    /// Subtracts; what it was.
    fn fetch_sub(&self, n: u32, order: Ordering) -> u32;
    /// Sets bits; what it was.
    fn fetch_or(&self, bits: u32, order: Ordering) -> u32;
    /// Keeps only these bits; what it was.
    fn fetch_and(&self, bits: u32, order: Ordering) -> u32;
    /// Replaces it; what it was.
    fn swap(&self, value: u32, order: Ordering) -> u32;
    /// Makes it `new` if it is `old`; whether it was.
    fn replace(&self, old: u32, new: u32, order: Ordering) -> bool;
}

impl Word for AtomicU32 {
    #[inline(always)]
    fn new(value: u32) -> Self {
        Self::new(value)
    }
    #[inline(always)]
    fn load(&self, order: Ordering) -> u32 {
        self.load(order)
    }
    #[inline(always)]
    fn store(&self, value: u32, order: Ordering) {
        self.store(value, order);
    }
    #[inline(always)]
    fn fetch_add(&self, n: u32, order: Ordering) -> u32 {
        self.fetch_add(n, order)
    }
    #[inline(always)]
    fn fetch_sub(&self, n: u32, order: Ordering) -> u32 {
        self.fetch_sub(n, order)
    }
    #[inline(always)]
    fn fetch_or(&self, bits: u32, order: Ordering) -> u32 {
        self.fetch_or(bits, order)
    }
    #[inline(always)]
    fn fetch_and(&self, bits: u32, order: Ordering) -> u32 {
        self.fetch_and(bits, order)
    }
    #[inline(always)]
    fn swap(&self, value: u32, order: Ordering) -> u32 {
        self.swap(value, order)
    }
    #[inline(always)]
    fn replace(&self, old: u32, new: u32, order: Ordering) -> bool {
        self.compare_exchange(old, new, order, Ordering::Relaxed).is_ok()
    }
}
