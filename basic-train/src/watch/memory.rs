//! Memory in use, in MiB, and the device's name: what the system and the backend tell.

use burn::tensor::Device;
use serde::Serialize;

/// Memory at one moment.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize)]
pub struct Memory {
    /// The process's resident memory (Linux).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rss_mib: Option<f64>,
    /// What tensors use of the device's memory.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub device_mib: Option<f64>,
    /// What the backend's allocator holds of it, pages for reuse included.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub device_reserved_mib: Option<f64>,
}

impl Memory {
    /// The process's, and the device's where its backend tells (CUDA and wgpu do, Flex and NdArray don't).
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

/// The process's high-water mark of resident memory (Linux).
pub fn peak_rss_mib() -> Option<f64> {
    status("VmHWM:")
}

/// A line of /proc/self/status, in MiB.
fn status(key: &str) -> Option<f64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find(|line| line.starts_with(key))?;
    let kib: f64 = line.split_whitespace().nth(1)?.parse().ok()?;
    Some(kib / 1024.0)
}

/// The device's name as its driver gives it ("NVIDIA H100 80GB HBM3"); `None` for a CPU.
pub fn device_name(device: &Device) -> Option<String> {
    #[cfg(any(feature = "cuda", feature = "wgpu"))]
    return device.identity().map(|identity| identity.name);
    #[cfg(not(any(feature = "cuda", feature = "wgpu")))]
    {
        let _ = device;
        None
    }
}
