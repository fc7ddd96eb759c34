//! The binary `basic`.

/// Flex allocates memory for every result; the system allocator would give the pages back to the system each time.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> std::process::ExitCode {
    basic_cli::main()
}
