//! What a program finds on its stack: arguments, environment, auxiliary vector (System V ABI for x86-64, 3.4.1).

use alloc::vec::Vec;

use farpage_mm::PAGE_SIZE;

use super::image::Image;
use crate::arch::x86_64::{tsc, uaccess::copy_to_user};
use crate::vm::user::UserFault;

/// Keys of the auxiliary vector (`uapi/linux/auxvec.h`).
mod at {
    pub(super) const NULL: u64 = 0;
    pub(super) const PHDR: u64 = 3;
    pub(super) const PHENT: u64 = 4;
    pub(super) const PHNUM: u64 = 5;
    pub(super) const PAGESZ: u64 = 6;
    pub(super) const ENTRY: u64 = 9;
    pub(super) const UID: u64 = 11;
    pub(super) const EUID: u64 = 12;
    pub(super) const GID: u64 = 13;
    pub(super) const EGID: u64 = 14;
    pub(super) const HWCAP: u64 = 16;
    pub(super) const CLKTCK: u64 = 17;
    pub(super) const SECURE: u64 = 23;
    pub(super) const RANDOM: u64 = 25;
    pub(super) const HWCAP2: u64 = 26;
    pub(super) const EXECFN: u64 = 31;
}

/// Bytes of a program header of ELF64.
const PHENT: u64 = 56;

/// Writes the stack that ends at `top`; the stack pointer to begin with.
///
/// # Errors
/// The stack cannot be written.
pub(super) fn stack(
    top: u64,
    image: &Image,
    path: &str,
    args: &[Vec<u8>],
    env: &[Vec<u8>],
) -> Result<u64, UserFault> {
    let mut at = top - 16;
    let mut push = |bytes: &[u8], nul: &[u8]| {
        at -= (bytes.len() + nul.len()) as u64;
        copy_to_user(at, bytes)?;
        copy_to_user(at + bytes.len() as u64, nul)?;
        Ok::<_, UserFault>(at)
    };
    let name = push(path.as_bytes(), b"\0")?;
    let env = env.iter().map(|text| push(text, b"\0")).collect::<Result<Vec<_>, _>>()?;
    let args = args.iter().map(|text| push(text, b"\0")).collect::<Result<Vec<_>, _>>()?;
    // Under instruction counting the same in every run.
    let seed = tsc::now().wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let random = push(&[seed.to_le_bytes(), seed.rotate_left(32).to_le_bytes()].concat(), &[])?;
    let hwcap = u64::from(raw_cpuid::cpuid!(1).edx);
    let auxv = [
        (at::PHDR, image.phdrs.0),
        (at::PHENT, PHENT),
        (at::PHNUM, image.phdrs.1),
        (at::PAGESZ, PAGE_SIZE),
        (at::ENTRY, image.entry),
        (at::UID, 0),
        (at::EUID, 0),
        (at::GID, 0),
        (at::EGID, 0),
        (at::SECURE, 0),
        (at::CLKTCK, 100),
        (at::HWCAP, hwcap),
        (at::HWCAP2, 0),
        (at::RANDOM, random),
        (at::EXECFN, name),
        (at::NULL, 0),
    ];
    let mut words: Vec<u64> = Vec::new();
    words.push(args.len() as u64);
    words.extend(args.into_iter().chain([0]).chain(env).chain([0]));
    words.extend(auxv.into_iter().flat_map(|(key, value)| [key, value]));
    let start = (at - words.len() as u64 * 8) & !15;
    let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
    copy_to_user(start, &bytes)?;
    Ok(start)
}
