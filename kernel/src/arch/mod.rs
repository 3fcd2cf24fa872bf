//! Everything that touches the machine: the only place, beside `vm`, where the kernel is `unsafe`.

#[cfg(target_feature = "avx")]
compile_error!(
    "the kernel must not be compiled with AVX: its trap stub saves x87 and SSE state only, so AVX registers of \
     interrupted code would be spoilt"
);

pub(crate) mod heap;
pub(crate) mod x86_64;
