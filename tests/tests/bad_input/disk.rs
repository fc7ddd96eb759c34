//! Disks that are full and writes that fail.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

use tests::fixtures::{fixture, names};
use tests::{args, run_in_shell};

use crate::broken::{BASIC, Run, assert_no_checkpoint, basic, good_sample};

/// A file system of `kib` KiB at `path`, which is unmounted when this is dropped.
struct SmallDisk {
    path: PathBuf,
}

impl SmallDisk {
    /// Mounts the file system. If that is not allowed, prints a note past the test harness and returns `None`.
    fn mount(path: &Path, kib: usize) -> Option<Self> {
        fs::create_dir_all(path).unwrap();
        let size = format!("size={kib}k");
        let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", &size, "tmpfs"]).arg(path).output();
        if mounted.is_ok_and(|output| output.status.success()) {
            return Some(Self { path: path.into() });
        }
        let _ = writeln!(std::io::stderr(), "SKIPPED: the full disk: no tmpfs can be mounted here (needs root)");
        None
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("--lazy").arg(&self.path).status();
    }
}

#[test]
fn a_full_disk_leaves_no_half_written_checkpoint() {
    // The checkpoint takes 620 KB, so the record and the metrics fit but the weights do not.
    let run = Run::new(&[good_sample()]);
    let Some(_disk) = SmallDisk::mount(&run.dir.path().join("small"), 300) else { return };
    let out = run.dir.path().join("small/out");
    let line = args!["train", run.dir.path().join("recipe.toml"), "--out", out, "--ui", "bar"];
    basic(line).refused(1, &["model.safetensors", "No space left on device"]);
    assert_no_checkpoint(&out);

    let grads = run.dir.path().join("small/grads.safetensors");
    fs::write(run.dir.path().join("small/filler"), vec![1; 200 << 10]).unwrap();
    let line = args!["losses", fixture("plain"), fixture("samples.jsonl"), "--grads", grads];
    basic(line).refused(1, &["grads.safetensors", "No space left on device"]);
    assert!(!grads.exists());
    let left = names(&run.dir.path().join("small"));
    assert!(left.iter().all(|name| name == "filler" || name.starts_with("out/")), "{left:?}");
}

#[test]
fn a_full_disk_does_not_cost_the_checkpoint_that_is_there() {
    let run = Run::new(&[good_sample()]);
    // There is room for one checkpoint of 640 KB with its files but not for two.
    let Some(_disk) = SmallDisk::mount(&run.dir.path().join("small"), 900) else { return };
    let grads = run.dir.path().join("small/grads.safetensors");
    let line = args!["losses", fixture("plain"), fixture("samples.jsonl"), "--grads", grads];
    basic(line.clone()).succeeded();
    let before = fs::read(&grads).unwrap();
    fs::write(run.dir.path().join("small/filler"), vec![1; 740 << 10]).unwrap();
    basic(line).refused(1, &["grads.safetensors", "No space left on device"]);
    assert_eq!(fs::read(&grads).unwrap(), before);
}

#[test]
fn a_write_that_fails_is_an_error_that_names_the_file() {
    // Like a full disk, for users who may not mount one: files are limited to 100 blocks of 512 bytes.
    let setup = "trap '' XFSZ; ulimit -f 100";
    let run = Run::new(&[good_sample()]);
    run_in_shell(setup, BASIC, run.line(&[])).refused(1, &["model.safetensors", "File too large"]);
    assert_no_checkpoint(&run.out());
    let grads = run.dir.path().join("grads.safetensors");
    let line = args!["losses", fixture("plain"), fixture("samples.jsonl"), "--grads", grads];
    run_in_shell(setup, BASIC, line).refused(1, &["grads.safetensors", "File too large"]);
    let left = names(run.dir.path());
    assert!(left.iter().all(|n| n == "data.json" || n == "recipe.toml" || n.starts_with("out/")), "{left:?}");
}
