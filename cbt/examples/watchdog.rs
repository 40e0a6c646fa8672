//! The watchdog as a program of its own, for the tests of this crate.

fn main() {
    std::process::exit(cbt::watchdog_main(std::env::args().skip(1)));
}
