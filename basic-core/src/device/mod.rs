//! Device selection. Besides the extension traits and NCCL, this is the only place that names backends.

#[cfg(feature = "cuda")]
mod cuda;
#[cfg(feature = "cuda")]
mod kernels;

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use burn::tensor::Device;
use serde::{Deserialize, Serialize};
use thiserror::Error;

/// A device as users write it: `auto`, `cpu`, `ndarray`, `wgpu[:i]` or `cuda[:i]`.
///
/// `cpu` is Burn's Flex backend, `ndarray` Burn's second CPU implementation (to check one against the other). `auto`
/// takes the first of CUDA, wgpu with a GPU, `cpu` and `ndarray` that is both in this build and on this machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum DeviceSpec {
    /// The best device of this machine.
    #[default]
    Auto,
    /// Burn's Flex backend.
    Cpu,
    /// Burn's NdArray backend.
    NdArray,
    /// The i-th adapter that wgpu lists; `None` lets wgpu choose.
    Wgpu(Option<usize>),
    /// The i-th CUDA device.
    Cuda(usize),
}

/// Why a device cannot be used.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum DeviceError {
    /// The text names no device.
    #[error("unknown device '{0}': use auto, cpu, ndarray, wgpu[:index] or cuda[:index]")]
    Unknown(String),
    /// The backend was left out of this build.
    #[error("device '{device}' is not in this build: rebuild with `--features {feature}`")]
    NotCompiled {
        /// The device that was asked for.
        device: String,
        /// The cargo feature that adds the backend.
        feature: &'static str,
    },
    /// The backend is in this build, but the machine lacks the device.
    #[error("device '{0}' was not found on this machine: `basic devices` lists what is here")]
    NotFound(String),
    /// Something that the device needs is missing.
    #[error("device '{device}' cannot be used: {missing}")]
    Missing {
        /// The device that was asked for.
        device: String,
        /// What is missing, where it was looked for and how to get it.
        missing: String,
    },
}

impl FromStr for DeviceSpec {
    type Err = DeviceError;

    fn from_str(text: &str) -> Result<Self, DeviceError> {
        let unknown = || DeviceError::Unknown(text.to_string());
        let (name, index) = match text.split_once(':') {
            Some((name, index)) => (name, Some(index.parse::<usize>().map_err(|_| unknown())?)),
            None => (text, None),
        };
        match (name, index) {
            ("auto", None) => Ok(Self::Auto),
            ("cpu", None) => Ok(Self::Cpu),
            ("ndarray", None) => Ok(Self::NdArray),
            ("wgpu", index) => Ok(Self::Wgpu(index)),
            ("cuda", index) => Ok(Self::Cuda(index.unwrap_or(0))),
            _ => Err(unknown()),
        }
    }
}

impl TryFrom<String> for DeviceSpec {
    type Error = DeviceError;

    fn try_from(text: String) -> Result<Self, DeviceError> {
        text.parse()
    }
}

impl From<DeviceSpec> for String {
    fn from(spec: DeviceSpec) -> String {
        spec.to_string()
    }
}

impl fmt::Display for DeviceSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Auto => write!(f, "auto"),
            Self::Cpu => write!(f, "cpu"),
            Self::NdArray => write!(f, "ndarray"),
            Self::Wgpu(None) => write!(f, "wgpu"),
            Self::Wgpu(Some(i)) => write!(f, "wgpu:{i}"),
            Self::Cuda(i) => write!(f, "cuda:{i}"),
        }
    }
}

impl DeviceSpec {
    /// Opens the device, without autodiff.
    ///
    /// # Errors
    ///
    /// [`DeviceError::NotCompiled`] if this build lacks the backend, [`DeviceError::NotFound`] if the
    /// machine lacks the device.
    pub fn open(&self) -> Result<Device, DeviceError> {
        match *self {
            Self::Auto => available_devices()
                .into_iter()
                .find(|info| info.usable && !info.software)
                .ok_or_else(|| DeviceError::NotFound("auto".into()))?
                .spec
                .open(),
            Self::Cpu => open_cpu(self),
            Self::NdArray => open_ndarray(self),
            Self::Wgpu(index) => open_wgpu(self, index),
            Self::Cuda(index) => open_cuda(self, index),
        }
    }
}

/// One device that this build could use.
#[derive(Debug, Clone, Serialize)]
pub struct DeviceInfo {
    /// The argument of `--device`.
    pub spec: DeviceSpec,
    /// The backend's name and what it is for.
    pub backend: &'static str,
    /// Whether the machine has the device.
    pub usable: bool,
    /// Whether it is a CPU that emulates a GPU (llvmpipe and the like); `auto` never chooses such a device.
    pub software: bool,
}

/// The devices of this build and machine, best first; `auto` takes the first usable one.
pub fn available_devices() -> Vec<DeviceInfo> {
    let here = |spec, backend, software| DeviceInfo { spec, backend, usable: true, software };
    let cuda = (0..cuda_count()).map(|i| here(DeviceSpec::Cuda(i), "CUDA (NVIDIA)", false));
    let wgpu = wgpu_kinds()
        .into_iter()
        .enumerate()
        .map(|(i, software)| here(DeviceSpec::Wgpu(Some(i)), "wgpu (Vulkan, Metal, DirectX)", software));
    let cpu = cfg!(feature = "cpu").then(|| here(DeviceSpec::Cpu, "Flex (CPU)", false));
    let ndarray = cfg!(feature = "ndarray").then(|| here(DeviceSpec::NdArray, "NdArray (CPU, for checks)", false));
    cuda.chain(wgpu).chain(cpu).chain(ndarray).collect()
}

/// What the devices of this build need and this machine lacks: one sentence each, with where it was looked for and how
/// to get it. NCCL is included, although only several CUDA devices need it.
pub fn missing_parts() -> Vec<String> {
    cuda_missing()
}

/// The folder in which compiled kernels and the results of autotune are kept; `None` if no backend
/// of this build has one.
pub fn kernel_folder() -> Option<PathBuf> {
    kept_kernels()
}

/// Whether a device supports weights as symmetric integers of `bits` bits: 8 on all devices, 4 on all but NdArray.
pub fn quantizes(device: &Device, bits: u8) -> bool {
    bits == 8 || (bits == 4 && !format!("{device:?}").contains("NdArray"))
}

/// Bytes of a CUDA device's memory that came into use since it was opened; `None` for other devices.
pub fn memory_used(spec: &DeviceSpec) -> Option<u64> {
    match spec {
        #[cfg(feature = "cuda")]
        DeviceSpec::Cuda(index) => cuda::memory_used(*index),
        _ => None,
    }
}

#[allow(dead_code)]
fn not_compiled(spec: &DeviceSpec, feature: &'static str) -> DeviceError {
    DeviceError::NotCompiled { device: spec.to_string(), feature }
}

#[cfg(feature = "cpu")]
fn open_cpu(_: &DeviceSpec) -> Result<Device, DeviceError> {
    Ok(Device::flex())
}

#[cfg(not(feature = "cpu"))]
fn open_cpu(spec: &DeviceSpec) -> Result<Device, DeviceError> {
    Err(not_compiled(spec, "cpu"))
}

#[cfg(feature = "ndarray")]
fn open_ndarray(_: &DeviceSpec) -> Result<Device, DeviceError> {
    // Deprecated in Burn; kept as an independent second implementation to check results against.
    #[allow(deprecated)]
    Ok(Device::ndarray())
}

#[cfg(not(feature = "ndarray"))]
fn open_ndarray(spec: &DeviceSpec) -> Result<Device, DeviceError> {
    Err(not_compiled(spec, "ndarray"))
}

#[cfg(feature = "wgpu")]
fn wgpu_devices() -> Vec<Device> {
    use burn::tensor::DeviceType;
    Device::enumerate(DeviceType::Wgpu).into_vec()
}

#[cfg(not(feature = "wgpu"))]
fn wgpu_kinds() -> Vec<bool> {
    Vec::new()
}

/// For each adapter, whether it is a software one.
#[cfg(feature = "wgpu")]
fn wgpu_kinds() -> Vec<bool> {
    wgpu_devices().iter().map(|device| format!("{device:?}").contains("Cpu")).collect()
}

#[cfg(feature = "wgpu")]
fn open_wgpu(spec: &DeviceSpec, index: Option<usize>) -> Result<Device, DeviceError> {
    crate::ops::check_switches().map_err(|missing| DeviceError::Missing { device: spec.to_string(), missing })?;
    let devices = wgpu_devices();
    devices.into_iter().nth(index.unwrap_or(0)).ok_or_else(|| DeviceError::NotFound(spec.to_string()))
}

#[cfg(not(feature = "wgpu"))]
fn open_wgpu(spec: &DeviceSpec, _: Option<usize>) -> Result<Device, DeviceError> {
    Err(not_compiled(spec, "wgpu"))
}

#[cfg(not(feature = "cuda"))]
fn cuda_count() -> usize {
    0
}

#[cfg(feature = "cuda")]
fn cuda_count() -> usize {
    crate::cuda_parts::Parts::here().devices()
}

#[cfg(not(feature = "cuda"))]
fn cuda_missing() -> Vec<String> {
    Vec::new()
}

#[cfg(feature = "cuda")]
fn cuda_missing() -> Vec<String> {
    let parts = crate::cuda_parts::Parts::here();
    parts.missing().into_iter().chain(parts.nccl.clone().err()).collect()
}

#[cfg(not(feature = "cuda"))]
fn kept_kernels() -> Option<PathBuf> {
    None
}

#[cfg(feature = "cuda")]
fn kept_kernels() -> Option<PathBuf> {
    Some(kernels::folder())
}

/// Checks that several CUDA devices can sum their gradients.
///
/// # Errors
///
/// Returns [`DeviceError::Missing`] if NCCL's library is not found, or the driver is too old.
pub fn check_nccl() -> Result<(), DeviceError> {
    #[cfg(feature = "cuda")]
    crate::nccl::check().map_err(|missing| DeviceError::Missing { device: "cuda".into(), missing })?;
    Ok(())
}

#[cfg(feature = "cuda")]
fn open_cuda(spec: &DeviceSpec, index: usize) -> Result<Device, DeviceError> {
    let parts = crate::cuda_parts::Parts::here();
    match parts.missing().first() {
        Some(missing) => Err(DeviceError::Missing { device: spec.to_string(), missing: missing.clone() }),
        None if index < parts.devices() => {
            crate::ops::check_switches()
                .map_err(|missing| DeviceError::Missing { device: spec.to_string(), missing })?;
            kernels::keep();
            cuda::size_pages(index);
            Ok(Device::cuda(index))
        }
        None => Err(DeviceError::NotFound(spec.to_string())),
    }
}

#[cfg(not(feature = "cuda"))]
fn open_cuda(spec: &DeviceSpec, _: usize) -> Result<Device, DeviceError> {
    Err(not_compiled(spec, "cuda"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_reads_back_as_it_is_written() {
        for text in ["auto", "cpu", "ndarray", "wgpu", "wgpu:1", "cuda:0", "cuda:3"] {
            assert_eq!(text.parse::<DeviceSpec>().map(|d| d.to_string()), Ok(text.into()));
        }
    }

    #[test]
    fn a_text_that_names_no_device_is_an_error_that_lists_the_devices() {
        for text in ["gpu", "cpu:0", "cuda:x", "wgpu:", ""] {
            let error = text.parse::<DeviceSpec>().unwrap_err().to_string();
            assert!(error.contains("use auto, cpu"), "{error}");
        }
    }

    #[cfg(not(feature = "cuda"))]
    #[test]
    fn a_backend_that_was_not_built_in_says_how_to_build_it() {
        let error = DeviceSpec::Cuda(0).open().unwrap_err().to_string();
        assert!(error.contains("--features cuda"), "{error}");
    }
}
