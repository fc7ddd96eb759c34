//! Reads the memory in use, in MiB, and the device's name, as the system and the backend report them.

use burn::tensor::Device;
use serde::Serialize;

/// Memory at one moment.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize)]
pub struct Memory {
    /// The process's resident memory (Linux only).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rss_mib: Option<f64>,
    /// The device memory that tensors use.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub device_mib: Option<f64>,
    /// The device memory that the backend's allocator holds, including pages kept for reuse.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub device_reserved_mib: Option<f64>,
}

impl Memory {
    /// The current memory of the process and, if the backend reports it, of the device (CUDA and wgpu do, Flex and
    /// NdArray don't).
    pub fn now(device: &Device) -> Self {
        let usage = device.memory_pool_usage();
        let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
        Self {
            rss_mib: status("VmRSS:"),
            device_mib: usage.map(|usage| mib(usage.bytes_in_use)),
            device_reserved_mib: usage.map(|usage| mib(usage.bytes_reserved)),
        }
    }
}

/// The largest resident memory of the process so far, in MiB (Linux only).
pub fn peak_rss_mib() -> Option<f64> {
    status("VmHWM:")
}

/// The value of a line of /proc/self/status, in MiB.
fn status(key: &str) -> Option<f64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find(|line| line.starts_with(key))?;
    let kib: f64 = line.split_whitespace().nth(1)?.parse().ok()?;
    Some(kib / 1024.0)
}

/// The device's name as its driver reports it ("NVIDIA H100 80GB HBM3"); `None` for a CPU.
pub fn device_name(device: &Device) -> Option<String> {
    #[cfg(any(feature = "cuda", feature = "wgpu"))]
    return device.identity().map(|identity| identity.name);
    #[cfg(not(any(feature = "cuda", feature = "wgpu")))]
    {
        let _ = device;
        None
    }
}
