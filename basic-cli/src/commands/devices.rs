//! Runs `basic devices`: lists the devices, or checks or times them.

use anyhow::{Result, bail};
use basic_core::check::{Checked, Rate, check, rates};
use basic_core::{DeviceSpec, available_devices, kernel_folder, missing_parts};
use basic_train::parallel::{Group, Link, Replicas, links};
use burn::tensor::DType;
use serde_json::json;

use crate::args::Devices;
use crate::output::{print_json, say};

/// Lists the devices, or checks or times one.
pub fn devices(args: Devices) -> Result<()> {
    if !args.together.is_empty() {
        return match &Group::join()? {
            None => together(&args, None),
            Some(group) => group.run(|| together(&args, Some(group)), crate::message),
        };
    }
    match (args.check, args.rates) {
        (Some(device), _) => try_out(device, &args),
        (None, Some(device)) => time(device, &args),
        (None, None) if args.dtype.is_some() => bail!("--dtype belongs to --check or --rates"),
        (None, None) => list(&args),
    }
}

/// Checks and times what several devices do together, or the devices of processes that were launched together.
fn together(args: &Devices, launched: Option<&Group>) -> Result<()> {
    let replicas = match (launched, &args.together[..]) {
        (None, devices) => Replicas::open(devices)?.linked()?,
        (Some(group), [device]) => Replicas::launched(group.device(*device)?, group.collective.clone())?,
        (Some(group), _) => {
            bail!("--together names several devices; of {} processes each has one", group.collective.world())
        }
    };
    let all = links(&replicas, &|link: &Link| {
        if !args.json {
            let verdict = if link.passed { "ok" } else { "FAILED" };
            let Link { operation, dtype, bytes, seconds, gigabytes, .. } = link;
            say!(
                "{verdict:<6} {dtype:<5} {operation:<14} {bytes:>12} bytes {:>10.1} us {gigabytes:>8.2} GB/s",
                seconds * 1e6
            );
        }
    })?;
    let failed = all.iter().filter(|link| !link.passed).count();
    if replicas.leads() {
        if args.json {
            print_json(&json!({"replicas": replicas.world(), "failed": failed, "operations": all}))?;
        } else if failed == 0 {
            say!("{} replicas: all {} operations give the right values", replicas.world(), all.len());
        }
    }
    if failed > 0 {
        bail!("{failed} of {} operations of {} replicas give wrong values", all.len(), replicas.world());
    }
    Ok(())
}

fn list(args: &Devices) -> Result<()> {
    let devices = available_devices();
    let features: Vec<&str> = [
        ("cpu", cfg!(feature = "cpu")),
        ("ndarray", cfg!(feature = "ndarray")),
        ("wgpu", cfg!(feature = "wgpu")),
        ("cuda", cfg!(feature = "cuda")),
    ]
    .into_iter()
    .filter_map(|(name, on)| on.then_some(name))
    .collect();
    if args.json {
        return print_json(&json!({
            "compiled": features,
            "devices": devices,
            "missing": missing_parts(),
            "kernels": kernel_folder(),
        }));
    }
    say!("compiled in: {}", features.join(", "));
    for device in devices {
        let note = if device.software { ", a software device" } else { "" };
        say!("{:<10} {}{note}", device.spec.to_string(), device.backend);
    }
    for part in missing_parts() {
        say!("missing: {part}");
    }
    if let Some(folder) = kernel_folder() {
        say!("compiled kernels and measurements are kept in {}", folder.display());
    }
    Ok(())
}

/// Checks every operation on a device, in each data type that it supports.
fn try_out(spec: DeviceSpec, args: &Devices) -> Result<()> {
    let device = spec.open()?;
    let asked: Vec<DType> = match args.dtype {
        Some(dtype) => vec![dtype.into()],
        None => vec![DType::F32, DType::BF16],
    };
    let (dtypes, without): (Vec<DType>, Vec<DType>) =
        asked.into_iter().partition(|dtype| device.supports_dtype(*dtype));
    if let (true, Some(dtype)) = (dtypes.is_empty(), without.first()) {
        bail!("device '{spec}' has no {}: leave out --dtype", dtype.name());
    }
    let all = check(&device, &dtypes, &mut |checked| {
        if !args.json {
            say!("{}", line(checked));
        }
    });
    let failed = all.iter().filter(|checked| !checked.passed).count();
    if args.json {
        let without: Vec<&str> = without.iter().map(|dtype| dtype.name()).collect();
        print_json(&json!({"device": spec, "without": without, "failed": failed, "operations": all}))?;
    } else {
        without.iter().for_each(|dtype| say!("{spec} has no {}, which was left out", dtype.name()));
    }
    if failed > 0 {
        bail!("{failed} of {} operations do not compute what they should on {spec}", all.len());
    }
    if !args.json {
        say!("{spec}: all {} operations compute what they should", all.len());
    }
    Ok(())
}

fn line(checked: &Checked) -> String {
    let verdict = if checked.passed { "ok" } else { "FAILED" };
    let found = match (&checked.error, checked.difference) {
        (Some(error), _) => error.clone(),
        (None, Some(difference)) => format!("off by {difference:.1e}, {:.0e} are let pass", checked.tolerance),
        (None, None) => "nothing came back".into(),
    };
    format!("{verdict:<6} {:<5} {:<32} {found}, {:.2} s", checked.dtype, checked.name, checked.seconds)
}

/// Times the operations of a training step on a device.
fn time(spec: DeviceSpec, args: &Devices) -> Result<()> {
    let device = spec.open()?;
    let dtype: DType = args.dtype.map_or(DType::BF16, Into::into);
    if !device.supports_dtype(dtype) {
        bail!("device '{spec}' has no {}: choose another with --dtype", dtype.name());
    }
    let all = rates(&device, dtype, &args.only, &mut |rate: &Rate| {
        if !args.json {
            say!(
                "{:<40} {:>10.1} us {:>8.1} TFLOP/s {:>8.0} GB/s",
                rate.name,
                rate.seconds * 1e6,
                rate.tflops,
                rate.gigabytes
            );
        }
    })?;
    if args.json {
        print_json(&json!({"device": spec, "dtype": dtype.name(), "operations": all}))?;
    }
    Ok(())
}
