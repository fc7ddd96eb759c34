//! Invalid command lines and devices.

use std::ffi::OsString;
use std::process::{Command, Stdio};

use tests::args;
use tests::fixtures::fixture;

use crate::broken::{BASIC, Run, basic, good_sample};

#[test]
fn a_wrong_command_line_ends_with_2_and_says_what_is_wrong_in_one_line() {
    let cases: [(Vec<OsString>, &str); 8] = [
        (args!["bogus"], "bogus"),
        (args!["losses", "somewhere"], "SAMPLES"),
        (args!["losses", "a", "b", "--layer-weights", "rising"], "use increasing, constant or decreasing"),
        (args!["losses", "a", "b", "--target", "v"], "use refined or refinement"),
        (args!["losses", "a", "b", "--k", "many"], "--k"),
        (args!["losses", "a", "b", "--device", "gpu"], "use auto, cpu"),
        (args!["train", "r.toml", "--unknown"], "--unknown"),
        (args!["generate", "a", "--prompt", "hi"], "--image"),
    ];
    for (line, mention) in cases {
        basic(line).refused(2, &[mention]);
    }
}

#[test]
fn help_and_version_are_no_errors() {
    for flag in ["--help", "--version"] {
        assert!(basic(args![flag]).succeeded().stdout.contains("basic"));
    }
}

#[test]
fn a_device_that_was_not_compiled_in_says_how_to_get_it() {
    for (device, feature) in [("cuda", "--features cuda"), ("wgpu:0", "--features wgpu")] {
        if cfg!(feature = "cuda") && device == "cuda" || cfg!(feature = "wgpu") && device == "wgpu:0" {
            continue;
        }
        let line = args!["losses", fixture("plain"), fixture("samples.jsonl"), "--device", device];
        basic(line).refused(1, &[device, feature]);
        Run::new(&[good_sample()]).train(&["--device", device]).refused(1, &[device, feature]);
    }
}

#[test]
fn a_device_that_lacks_the_type_is_refused() {
    for dtype in ["float16", "bfloat16"] {
        let on = |device: &str| args!["losses", fixture("plain"), fixture("samples.jsonl"), "--device", device];
        basic([on("ndarray"), args!["--dtype", dtype]].concat()).refused(1, &["ndarray", "--dtype"]);
        basic([on("cpu"), args!["--dtype", dtype]].concat()).succeeded();
    }
}

#[test]
fn k_beyond_the_decoders_layers_is_refused_with_the_number_of_layers() {
    for k in ["0", "5"] {
        // The fixture's decoder has 4 layers.
        basic(args!["losses", fixture("plain"), fixture("samples.jsonl"), "--k", k]).refused(1, &["4"]);
    }
}

#[test]
fn a_reader_who_has_seen_enough_is_no_failure() {
    for line in [args!["inspect", fixture("plain")], args!["devices"], args!["inspect", fixture("plain"), "--json"]] {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let ran = Command::new(BASIC).args(line).stdout(writer).stderr(Stdio::piped()).spawn().unwrap();
        let ran = ran.wait_with_output().unwrap();
        assert_eq!((ran.status.code(), String::from_utf8_lossy(&ran.stderr).as_ref()), (Some(0), ""));
    }
}
