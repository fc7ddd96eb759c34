//! The folder in which compiled kernels and the results of autotune are kept.

use std::env;
use std::path::PathBuf;
use std::sync::Once;

use cubecl_runtime::config::cache::CacheConfig;
use cubecl_runtime::config::{CubeClRuntimeConfig, RuntimeConfig};

/// The environment variable that names the folder.
pub const FOLDER: &str = "BASIC_KERNEL_CACHE";

/// Sets the folder for kernels: the one that [`FOLDER`] names; else the one that a `cubecl.toml` or `burn.toml` sets;
/// else the user's cache, `~/.cache/cubecl` on Linux. CubeCL's own default is the target directory of whatever cargo
/// project the current directory is in. Must be called before the first device is opened.
pub fn keep() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let mut config = CubeClRuntimeConfig::from_current_dir().override_from_env();
        // Off by default in CubeCL, which then keeps only the results of autotune.
        config.compilation.cache = true;
        let path = &mut config.environment.path;
        match env::var_os(FOLDER).filter(|folder| !folder.is_empty()) {
            Some(folder) => *path = CacheConfig::Directory(PathBuf::from(folder)),
            None if matches!(path, CacheConfig::Target) => *path = CacheConfig::Global,
            None => {}
        }
        // A program that uses this crate may have set its own configuration already; then that one stays.
        let _ = CubeClRuntimeConfig::try_set(config);
    });
}

/// The folder in which kernels are kept.
pub fn folder() -> PathBuf {
    keep();
    CubeClRuntimeConfig::get().environment.path.root()
}
