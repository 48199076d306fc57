//! Links the guest for a machine without an operating system, like the polling guest.

fn main() {
    let folder = std::env::var("CARGO_MANIFEST_DIR").unwrap_or_default();
    println!("cargo:rerun-if-changed=../poll/link.ld");
    for argument in [
        "-nostdlib",
        "-static",
        "-no-pie",
        "-Wl,--build-id=none",
        "-Wl,-z,norelro",
        "-Wl,-z,max-page-size=0x1000",
        &format!("-Wl,-T,{folder}/../poll/link.ld"),
    ] {
        println!("cargo:rustc-link-arg-bins={argument}");
    }
}
