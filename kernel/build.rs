//! Linker arguments of the kernel: a static, freestanding ELF in the top 2 GiB, laid out by `kernel.ld`.
//!
//! The refusal of AVX is in `src/arch/mod.rs`: only the compiler of the binary knows for sure what it is compiled with;
//! this script also runs for the host-side tests of the library, which may use anything.

fn main() {
    let dir = std::env::var("CARGO_MANIFEST_DIR").unwrap_or_default();
    let script = format!("{dir}/kernel.ld");
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-changed={script}");
    for arg in ["-nostartfiles", "-nostdlib", "-static", "-no-pie"] {
        println!("cargo:rustc-link-arg-bins={arg}");
    }
    let linker = "--build-id=none,-zmax-page-size=4096,-znorelro,--gc-sections,--no-eh-frame-hdr";
    println!("cargo:rustc-link-arg-bins=-Wl,{linker},-T{script}");
}
