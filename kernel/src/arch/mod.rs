//! Everything that touches the machine: the only place, beside `vm.rs`, where the kernel is `unsafe`.

pub(crate) mod heap;
pub(crate) mod x86_64;
