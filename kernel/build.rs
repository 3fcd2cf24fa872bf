//! Linker arguments of the kernel: a static, freestanding ELF in the top 2 GiB, laid out by `kernel.ld`.
//!
//! Refuses AVX: the trap stub saves x87 and SSE state by `fxsave64` only, so AVX registers of an interrupted
//! computation would be spoilt without a word.

fn main() {
    let dir = std::env::var("CARGO_MANIFEST_DIR").unwrap_or_default();
    let script = format!("{dir}/kernel.ld");
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-changed={script}");

    let features = std::env::var("CARGO_CFG_TARGET_FEATURE").unwrap_or_default();
    let freestanding =
        std::env::var("PROFILE").is_ok() && std::env::var("CARGO_CFG_PANIC").as_deref() == Ok("abort");
    if let Some(avx) = features.split(',').find(|feature| feature.starts_with("avx")) {
        // The host-side tests of the library may be built with anything; the kernel may not.
        assert!(
            !freestanding,
            "the kernel must not be compiled with {avx}: its trap stub saves SSE state only"
        );
    }

    for arg in ["-nostartfiles", "-nostdlib", "-static", "-no-pie"] {
        println!("cargo:rustc-link-arg-bins={arg}");
    }
    let linker = "--build-id=none,-zmax-page-size=4096,-znorelro,--gc-sections,--no-eh-frame-hdr";
    println!("cargo:rustc-link-arg-bins=-Wl,{linker},-T{script}");
}
