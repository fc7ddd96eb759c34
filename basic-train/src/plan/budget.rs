//! Determines how much memory a device has.

use std::fs;

use basic_core::{DeviceSpec, available_devices};
use serde::Serialize;

/// A device's memory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Budget {
    /// Size in bytes.
    pub bytes: u64,
    /// Where the number comes from.
    pub source: &'static str,
}

impl Budget {
    /// The size that the user gave.
    pub fn given(bytes: u64) -> Self {
        Self { bytes, source: "--memory" }
    }

    /// The memory that `device` has available: on a CPU what the system reports as available, within the process's own
    /// limit. `None` for a GPU, because Burn does not report a GPU's memory.
    pub fn of(device: DeviceSpec) -> Option<Self> {
        if is_gpu(device) {
            return None;
        }
        let available = available(&fs::read_to_string("/proc/meminfo").ok()?)?;
        let limit = limit("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current");
        Some(match limit {
            Some(left) if left < available => Self { bytes: left, source: "the control group's limit" },
            _ => Self { bytes: available, source: "MemAvailable" },
        })
    }
}

/// Whether a device is a GPU; `auto` is resolved to the device that it selects on this machine.
pub fn is_gpu(device: DeviceSpec) -> bool {
    match device {
        DeviceSpec::Cuda(_) | DeviceSpec::Wgpu(_) => true,
        DeviceSpec::Cpu | DeviceSpec::NdArray => false,
        DeviceSpec::Auto => {
            let first = available_devices().into_iter().find(|info| info.usable && !info.software);
            first.is_some_and(|info| matches!(info.spec, DeviceSpec::Cuda(_) | DeviceSpec::Wgpu(_)))
        }
    }
}

/// `MemAvailable` from the text of /proc/meminfo, in bytes.
fn available(text: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let kib: u64 = line.split_whitespace().next()?.parse().ok()?;
    Some(kib << 10)
}

fn limit(most: &str, used: &str) -> Option<u64> {
    let number = |path: &str| fs::read_to_string(path).ok()?.trim().parse::<u64>().ok();
    Some(number(most)?.saturating_sub(number(used)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hosts_memory_is_read_and_a_gpus_is_not_known() {
        assert_eq!(available("MemTotal: 9 kB\nMemAvailable:   2048 kB\n"), Some(2 << 20));
        assert_eq!(available("MemTotal: 9 kB\n"), None);
        assert_eq!(Budget::of(DeviceSpec::Cuda(0)), None);
        if cfg!(target_os = "linux") {
            assert!(Budget::of(DeviceSpec::Cpu).unwrap().bytes > 1 << 20);
        }
    }
}
