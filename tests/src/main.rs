//! The binary under test: the `main` of `basic`, built in this package so that its tests can find it.

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> std::process::ExitCode {
    basic_cli::main()
}
