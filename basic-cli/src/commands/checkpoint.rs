//! Runs the commands on checkpoint files: `basic assemble`, `convert`, `merge` and `inspect`.

use anyhow::{Result, bail};
use basic_core::DeviceSpec;
use basic_models::Checkpoint;
use basic_models::checkpoint::{AdapterFiles, AssembleOptions, Description, GGUF_FILES, Quant, SaveOptions, describe};
use burn::tensor::Device;
use serde_json::Value;

use crate::args::{Assemble, Convert, Inspect, Merge, Output, QuantArg};
use crate::output::{print_json, say, tell};

/// A device for networks whose weights are not loaded: a CPU backend if this build has one.
pub(super) fn host() -> Result<Device> {
    let cpu = [DeviceSpec::Cpu, DeviceSpec::NdArray].iter().find_map(|spec| spec.open().ok());
    match cpu {
        Some(device) => Ok(device),
        None => Ok(DeviceSpec::Auto.open()?),
    }
}

/// Runs `basic assemble`.
pub fn assemble(args: Assemble) -> Result<()> {
    let Some((vision, fused)) = args.vision.split_first() else { bail!("--vision names no vision encoder") };
    let options = AssembleOptions {
        projector: args.projector,
        seed: args.seed,
        projector_weights: args.projector_weights,
        trained: args.weights,
        pad_to_multiple_of: args.pad_to_multiple_of.map(usize::from),
        image_grid_pinpoints: args.image_grid_pinpoints,
        fused_vision: fused.to_vec(),
    };
    let checkpoint = Checkpoint::assemble_with(vision, &args.llm, &options)?;
    write(&checkpoint, &args.out, &args.output)
}

/// Runs `basic convert`.
pub fn convert(args: Convert) -> Result<()> {
    let checkpoint = Checkpoint::open(&args.checkpoint)?;
    if !args.gguf {
        return write(&checkpoint, &args.out, &args.output);
    }
    let device = host()?;
    warn(&checkpoint, &device);
    let quant = match args.quant {
        QuantArg::Q8_0 => Quant::Q8_0,
        QuantArg::Q4_0 => Quant::Q4_0,
        QuantArg::F16 => Quant::F16,
        QuantArg::F32 => Quant::F32,
    };
    for note in checkpoint.export_gguf(&args.out, quant, args.output.overwrite, &device)? {
        tell!("note: {note}");
    }
    let [model, vision] = GGUF_FILES.map(|name| args.out.join(name));
    say!("decoder: {}", model.display());
    say!("vision encoder and projector: {}", vision.display());
    Ok(())
}

/// Runs `basic merge`.
pub fn merge(args: Merge) -> Result<()> {
    let adapters = AdapterFiles::open(&args.adapter)?;
    adapters.check_base(&args.base)?;
    let checkpoint = Checkpoint::open_with(&args.base, adapters)?;
    write(&checkpoint, &args.out, &args.output)
}

/// Prints what of the checkpoint is not written, and what differs from its configuration.
fn warn(checkpoint: &Checkpoint, device: &Device) {
    let unexpected = checkpoint.unexpected(device);
    if !unexpected.is_empty() {
        tell!(
            "warning: {}: tensors that the model has no place for are left out: {}",
            checkpoint.dir.display(),
            unexpected.join(", ")
        );
    }
    super::model::warn(checkpoint);
}

fn write(checkpoint: &Checkpoint, out: &std::path::Path, output: &Output) -> Result<()> {
    let device = host()?;
    warn(checkpoint, &device);
    let dtype = output.dtype.map_or(checkpoint.stored_dtype(), Into::into);
    let options = SaveOptions { shard_size: Some(output.shard_size), ..SaveOptions::new(dtype) };
    checkpoint.convert(out, &options, output.overwrite, &device)?;
    say!("checkpoint: {}", out.display());
    Ok(())
}

/// Runs `basic inspect`.
pub fn inspect(args: Inspect) -> Result<()> {
    let description = describe(&args.checkpoint, &host()?)?;
    if args.json {
        return print_json(&description);
    }
    print(&description);
    Ok(())
}

fn print(it: &Description) {
    say!("{}", it.path.display());
    if let Some(kind) = it.kind {
        say!("  {}", format!("{kind:?}").to_lowercase());
    }
    for part in ["vision", "decoder"] {
        let sizes = it.architecture.get(part).and_then(Value::as_object).into_iter().flatten();
        let sizes: Vec<String> = sizes.map(|(key, value)| format!("{key} {}", plain(value))).collect();
        if !sizes.is_empty() {
            say!("  {part:<10} {}", sizes.join(", "));
        }
    }
    let counts = &it.parameters;
    say!("parameters on disk: {}", grouped(counts.total));
    for (part, count) in [
        ("vision", counts.vision),
        ("projector", counts.projector),
        ("decoder", counts.decoder),
        ("head", counts.head),
        ("other", counts.other),
    ] {
        if count > 0 {
            say!("  {part:<10} {:>16}", grouped(count));
        }
    }
    say!("types:");
    for (name, kind) in &it.types {
        say!("  {name:<10} {:>16} in {} tensors", grouped(kind.parameters), kind.tensors);
    }
    say!("files:");
    for file in &it.files {
        let tensors = file.tensors.map_or("not readable".into(), |count| format!("{count} tensors"));
        say!("  {:<36} {:>16} bytes, {tensors}", file.name, grouped(file.bytes as usize));
    }
    for (what, names) in [("missing", &it.missing), ("unexpected", &it.unexpected), ("wrong shapes", &it.wrong_shapes)]
    {
        if !names.is_empty() {
            say!("{what}: {}", shortened(names));
        }
    }
    for problem in &it.problems {
        say!("problem: {problem}");
    }
    say!("{}", if it.loads { "it would load" } else { "it would not load" });
}

fn plain(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), Into::into)
}

/// The first names of a long list; `--json` prints all.
fn shortened(names: &[String]) -> String {
    const SHOWN: usize = 8;
    let more = names.len().saturating_sub(SHOWN);
    let shown = names[..names.len() - more].join(", ");
    if more == 0 { shown } else { format!("{shown}, and {more} more") }
}

/// Digits in groups of three.
fn grouped(count: usize) -> String {
    let digits = count.to_string();
    let groups: Vec<&str> =
        digits.as_bytes().rchunks(3).rev().map(|group| std::str::from_utf8(group).unwrap_or_default()).collect();
    groups.join(" ")
}
