//! Finds what CUDA needs besides this binary, before CubeCL is asked for a device: CubeCL panics if a part is missing.

// The libraries are in C; the comment at each call says what it loads or writes.
#![allow(unsafe_code)]

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use cudarc::driver::result as driver;
use cudarc::nvrtc;

/// The folders of a CUDA toolkit that contain its libraries.
const LIBRARY_FOLDERS: [&str; 3] = ["lib64", "lib", "targets/x86_64-linux/lib"];

/// A header that every 16-bit kernel includes. A folder that has it has the others too.
const HEADER: &str = "cuda_bf16.h";

/// A CUDA version in CUDA's own encoding: 1000 major + 10 minor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version(pub i32);

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.0 / 1000, self.0 % 1000 / 10)
    }
}

/// The parts that CUDA needs. For a part that was not found: a sentence with what is missing, where it was looked for
/// and how to get it.
#[derive(Debug, Clone)]
pub struct Parts {
    /// The driver's CUDA version and the number of its devices.
    pub driver: Result<(Version, usize), String>,
    /// The version of NVRTC, which compiles the kernels.
    pub nvrtc: Result<Version, String>,
    /// The folder of the toolkit's headers, which the kernels include.
    pub headers: Result<PathBuf, String>,
    /// NCCL, which only several devices need.
    pub nccl: Result<(), String>,
}

impl Parts {
    /// The parts on this machine; searched once.
    pub fn here() -> &'static Self {
        static PARTS: OnceLock<Parts> = OnceLock::new();
        PARTS.get_or_init(|| {
            let toolkit = cubecl_cuda::install::cuda_path();
            Self {
                driver: find_driver(),
                nvrtc: find_nvrtc(toolkit.as_deref()),
                headers: find_headers(toolkit),
                nccl: crate::nccl::find(),
            }
        })
    }

    /// What is missing for using one device.
    pub fn missing(&self) -> Vec<String> {
        let parts = [self.driver.as_ref().err(), self.nvrtc.as_ref().err(), self.headers.as_ref().err()];
        let mut missing: Vec<String> = parts.into_iter().flatten().cloned().collect();
        if let (Ok((driver, _)), Ok(nvrtc)) = (&self.driver, &self.nvrtc)
            && nvrtc > driver
        {
            // The driver compiles NVRTC's PTX and accepts no PTX newer than itself.
            missing.push(format!(
                "NVRTC is of CUDA {nvrtc} and the driver knows CUDA up to {driver}: install a newer driver or an NVRTC \
                 of {driver} or before"
            ));
        }
        missing
    }

    /// The number of devices that can be used.
    pub fn devices(&self) -> usize {
        match (&self.driver, self.missing().is_empty()) {
            (Ok((_, count)), true) => *count,
            _ => 0,
        }
    }
}

/// The library folders of the CUDA toolkit; empty if there is no toolkit.
pub fn toolkit_libraries() -> Vec<PathBuf> {
    let toolkit = cubecl_cuda::install::cuda_path();
    toolkit.iter().flat_map(|toolkit| LIBRARY_FOLDERS.map(|folder| toolkit.join(folder))).collect()
}

fn find_driver() -> Result<(Version, usize), String> {
    // SAFETY: loads the driver's library and reads nothing from it.
    if !unsafe { cudarc::driver::sys::is_culib_present() } {
        return Err(
            "the NVIDIA driver's library (libcuda.so) is not in the loader's path: install the driver, or in a \
                    container start it with its GPUs (docker run --gpus all)"
                .into(),
        );
    }
    let failed = |what: &str, error: driver::DriverError| format!("the NVIDIA driver does not {what}: {error}");
    driver::init().map_err(|error| failed("start", error))?;
    let mut version = 0;
    // SAFETY: writes the version to a variable that outlives the call.
    unsafe { cudarc::driver::sys::cuDriverGetVersion(&mut version) }
        .result()
        .map_err(|error| failed("tell its version", error))?;
    let count = driver::device::get_count().map_err(|error| failed("list its devices", error))?;
    match usize::try_from(count) {
        Ok(count) if count > 0 => Ok((Version(version), count)),
        _ => Err("the NVIDIA driver has no device: CUDA_VISIBLE_DEVICES may hide them".into()),
    }
}

fn find_nvrtc(toolkit: Option<&Path>) -> Result<Version, String> {
    // SAFETY: loads NVRTC's library and reads nothing from it.
    let present = || unsafe { nvrtc::sys::is_culib_present() };
    if !present() {
        // NVRTC opens its built-in functions by file name at its first compilation. Before 13.5 it searches the
        // loader's path only.
        toolkit.into_iter().for_each(|toolkit| load_of(toolkit, &["libnvrtc-builtins.so", "libnvrtc.so"]));
    }
    if !present() {
        let beside = match toolkit {
            Some(toolkit) => format!("nor under {}", toolkit.display()),
            None => "and there is no toolkit in CUDA_PATH, /usr/local/cuda or /opt/cuda".into(),
        };
        return Err(format!(
            "NVRTC (libnvrtc.so), which compiles the kernels, is not in the loader's path, {beside}: install the CUDA \
             toolkit, or `pip install nvidia-cuda-nvrtc` and set CUDA_PATH to its folder"
        ));
    }
    let (mut major, mut minor) = (0, 0);
    // SAFETY: writes two numbers to variables that outlive the call.
    unsafe { nvrtc::sys::nvrtcVersion(&mut major, &mut minor) }
        .result()
        .map_err(|error| format!("NVRTC does not tell its version: {error}"))?;
    Ok(Version(1000 * major + 10 * minor))
}

/// Loads libraries of a toolkit by path. A later request for the same library by name gets the loaded one.
fn load_of(toolkit: &Path, libraries: &[&str]) {
    let files = LIBRARY_FOLDERS.iter().filter_map(|folder| toolkit.join(folder).read_dir().ok()).flatten().flatten();
    let files: Vec<PathBuf> = files.map(|entry| entry.path()).collect();
    for library in libraries {
        let is_it = |path: &&PathBuf| {
            path.file_name().and_then(|name| name.to_str()).is_some_and(|name| name.starts_with(*library))
        };
        for path in files.iter().filter(is_it) {
            // SAFETY: loading by name would run the same initializers.
            if let Ok(library) = unsafe { libloading::Library::new(path) } {
                // The library stays loaded until the process ends.
                std::mem::forget(library);
                break;
            }
        }
    }
}

fn find_headers(toolkit: Option<PathBuf>) -> Result<PathBuf, String> {
    let helps = "install the CUDA toolkit, or `pip install nvidia-cuda-runtime nvidia-cuda-cccl nvidia-cuda-crt` and \
                 set CUDA_PATH to their folder";
    let Some(toolkit) = toolkit else {
        return Err(format!(
            "the CUDA headers, which the kernels include, are not there: no toolkit in CUDA_PATH, /usr/local/cuda or \
             /opt/cuda; {helps}"
        ));
    };
    let headers = toolkit.join("include");
    match headers.join(HEADER).is_file() {
        true => Ok(headers),
        false => Err(format!("{} has no {HEADER}, which the kernels include: {helps}", headers.display())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parts(driver: i32, nvrtc: i32) -> Parts {
        let headers = Ok(PathBuf::from("/usr/local/cuda/include"));
        Parts { driver: Ok((Version(driver), 2)), nvrtc: Ok(Version(nvrtc)), headers, nccl: Err("no NCCL".into()) }
    }

    #[test]
    fn a_driver_older_than_nvrtc_is_named_with_both_versions() {
        let old = parts(12040, 13050);
        assert_eq!(old.devices(), 0);
        let missing = old.missing();
        assert!(missing.len() == 1 && missing[0].contains("13.5") && missing[0].contains("12.4"), "{missing:?}");
        assert_eq!((parts(13050, 13050).devices(), parts(13050, 12080).devices()), (2, 2));
    }

    #[test]
    fn one_device_needs_no_nccl() {
        assert_eq!(parts(13000, 12080).missing(), Vec::<String>::new());
    }

    #[test]
    fn each_part_that_is_missing_is_told() {
        let none = Parts { driver: Err("d".into()), nvrtc: Err("n".into()), headers: Err("h".into()), nccl: Ok(()) };
        assert_eq!(none.missing(), ["d", "n", "h"]);
        assert_eq!(none.devices(), 0);
    }

    #[test]
    fn a_toolkit_without_headers_is_named_with_its_folder() {
        let dir = std::env::temp_dir().join("basic-no-toolkit");
        let error = find_headers(Some(dir.clone())).unwrap_err();
        assert!(error.contains(&*dir.to_string_lossy()) && error.contains(HEADER), "{error}");
        assert!(find_headers(None).unwrap_err().contains("CUDA_PATH"));
    }
}
