//! The address spaces of the lab: one is loaded, others wait.

use alloc::rc::Rc;
use alloc::vec::Vec;

use farpage_mm::{AddressSpace, HugeAdvice, PAGE_SIZE, Prot, Space, Vma};

use super::{Done, Refusal};
use crate::measure::measure;
use crate::println;
use crate::units::Size;
use crate::vm::shared::{self, Loaded};
use crate::vm::{Machine, clone_space, mm, new_space};

/// An address space and the number that it is called by.
struct Named {
    number: u64,
    space: Rc<AddressSpace<Machine>>,
}

/// All of them.
pub(super) struct Spaces {
    /// Dropped before the space that it has loaded.
    loaded: Option<Loaded>,
    all: Vec<Named>,
    /// The place of the loaded one among them.
    at: usize,
    next: u64,
}

impl Spaces {
    pub(super) fn new() -> Result<Self, Refusal> {
        let mut spaces = Self { loaded: None, all: Vec::new(), at: 0, next: 1 };
        spaces.add(new_space()?);
        spaces.load(0);
        Ok(spaces)
    }

    /// The one that is loaded.
    pub(super) fn space(&self) -> &'static Space<Machine> {
        self.all[self.at].space.space()
    }

    /// Its number.
    pub(super) fn current(&self) -> u64 {
        self.all[self.at].number
    }

    /// All of them, with their numbers.
    pub(super) fn iter(&self) -> impl Iterator<Item = (u64, &'static Space<Machine>)> {
        self.all.iter().map(|named| (named.number, named.space.space()))
    }

    fn add(&mut self, space: AddressSpace<Machine>) -> u64 {
        let number = self.next;
        self.next += 1;
        self.all.push(Named { number, space: Rc::new(space) });
        number
    }

    fn load(&mut self, at: usize) {
        self.loaded = None;
        self.at = at;
        self.loaded = Some(shared::load(&self.all[at].space));
    }

    /// Does something while no space is loaded.
    pub(super) fn aside<R>(&mut self, work: impl FnOnce() -> R) -> R {
        self.loaded = None;
        let result = work();
        self.load(self.at);
        result
    }

    pub(super) fn fork(&mut self) -> Done {
        let (clone, cost) = measure(|| clone_space(&self.all[self.at].space));
        let number = self.add(clone?);
        println!("space {number} is a clone of space {}; use {number} goes there", self.current());
        Ok(Some(cost))
    }

    pub(super) fn switch_to(&mut self, number: u64) -> Done {
        let at = self.all.iter().position(|named| named.number == number);
        let at =
            at.ok_or_else(|| Refusal::Said(alloc::format!("there is no space {number}; spaces lists them")))?;
        let ((), cost) = measure(|| self.load(at));
        println!("space {number} is loaded");
        Ok(Some(cost))
    }

    pub(super) fn end(&mut self) -> Done {
        if self.all.len() == 1 {
            self.add(new_space()?);
        }
        self.loaded = None;
        let ended = self.all.remove(self.at);
        let number = ended.number;
        let ((), cost) = measure(|| drop(ended));
        self.load(0);
        println!("space {number} is gone, its memory freed; space {} is loaded", self.current());
        Ok(Some(cost))
    }

    pub(super) fn list(&self) -> Done {
        for (at, named) in self.all.iter().enumerate() {
            let (space, resident) = (&named.space, named.space.resident());
            let mark = if at == self.at { '*' } else { ' ' };
            let pages = resident.ram.iter().sum::<u64>();
            println!(
                "{mark} space {}: root {:#x}, {} in RAM",
                named.number,
                space.root_pfn(),
                Size(pages * PAGE_SIZE)
            );
            for zone in mm().zones().filter(|zone| !zone.place().is_ram()) {
                let pages = zone.place().device_number().map_or(0, |number| resident.on_device(number));
                if pages != 0 {
                    println!("    on {}: {}", zone.place(), Size(pages * PAGE_SIZE));
                }
            }
            space.for_each_vma(say_vma);
        }
        Ok(None)
    }
}

fn say_vma(vma: &Vma) {
    let flag = |bit, c| if vma.prot().contains(bit) { c } else { '-' };
    let advice = match vma.advice() {
        HugeAdvice::Default => "",
        HugeAdvice::Huge => " huge",
        HugeAdvice::NoHuge => " nohuge",
    };
    println!(
        "    {:#014x}-{:#014x} {}{}{} {:>9}{advice}",
        vma.start().0,
        vma.end().0,
        flag(Prot::READ, 'r'),
        flag(Prot::WRITE, 'w'),
        flag(Prot::EXEC, 'x'),
        alloc::format!("{}", Size(vma.range().len()))
    );
}
