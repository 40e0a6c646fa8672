//! Compiles the tracker's tracepoint programs; src/tracker/program.rs embeds the object.

use std::path::PathBuf;

const SOURCE: &str = "src/bpf/tracker.bpf.c";

fn main() {
    println!("cargo:rerun-if-changed={SOURCE}");
    let object =
        PathBuf::from(std::env::var_os("OUT_DIR").expect("cargo sets OUT_DIR")).join("tracker.bpf.o");
    let built = libbpf_cargo::SkeletonBuilder::new()
        .source(SOURCE)
        .obj(&object)
        // v3 has the atomic operations that return a value.
        .clang_args(["-mcpu=v3", "-Wall", "-Werror"])
        .build();
    if let Err(error) = built {
        panic!("cannot compile {SOURCE} (clang with the bpf target is needed): {error:#}");
    }
}
