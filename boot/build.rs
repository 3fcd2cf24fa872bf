//! Linker arguments of the loader: a static, freestanding ELF at 1 MiB, laid out by `boot.ld`.

fn main() {
    let dir = std::env::var("CARGO_MANIFEST_DIR").unwrap_or_default();
    let script = format!("{dir}/boot.ld");
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-changed={script}");
    for arg in ["-nostartfiles", "-nostdlib", "-static", "-no-pie"] {
        println!("cargo:rustc-link-arg-bins={arg}");
    }
    let linker = "--build-id=none,-zmax-page-size=4096,-znorelro,--gc-sections,--no-eh-frame-hdr";
    println!("cargo:rustc-link-arg-bins=-Wl,{linker},-T{script}");
}
