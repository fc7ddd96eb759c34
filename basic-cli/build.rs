//! Records the git revision that the binary is built from, where there is one.

use std::process::Command;

fn main() {
    println!("cargo:rerun-if-changed=../.git/HEAD");
    println!("cargo:rerun-if-changed=../.git/refs/heads/main");
    let output = Command::new("git").args(["rev-parse", "HEAD"]).output();
    if let Ok(output) = output
        && output.status.success()
    {
        println!("cargo:rustc-env=BASIC_REVISION={}", String::from_utf8_lossy(&output.stdout).trim());
    }
}
