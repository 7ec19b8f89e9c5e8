//! Takes the place of the library and the generated declarations from the environment; Meson sets both.

use std::env;

fn required(name: &str) -> String {
    println!("cargo:rerun-if-env-changed={name}");
    env::var(name).unwrap_or_else(|_| panic!("{name} is not set; bindings/README.md says what it is"))
}

fn main() {
    let library_dir = required("MOELINK_LIB_DIR");
    let bindings = required("MOELINK_BINDINGS");
    println!("cargo:rerun-if-changed={bindings}");
    println!("cargo:rustc-env=MOELINK_BINDINGS={bindings}");
    println!("cargo:rustc-link-search=native={library_dir}");
    println!("cargo:rustc-link-lib=dylib=moelink");
}
