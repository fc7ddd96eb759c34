//! The binary `basic`.

/// Flex allocates fresh memory for every result; the system allocator gives the pages back each time.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> std::process::ExitCode {
    basic_cli::main()
}
