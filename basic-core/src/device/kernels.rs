//! Where compiled kernels and what autotune measured are kept.

use std::env;
use std::path::PathBuf;
use std::sync::Once;

use cubecl_runtime::config::cache::CacheConfig;
use cubecl_runtime::config::{CubeClRuntimeConfig, RuntimeConfig};

/// The environment variable that names the folder.
pub const FOLDER: &str = "BASIC_KERNEL_CACHE";

/// Keeps kernels in the folder that [`FOLDER`] names; else where a `cubecl.toml` or `burn.toml` says; else in the user's
/// cache, `~/.cache/cubecl` on Linux. CubeCL's own default is the target directory of whatever cargo project the
/// current directory is in. Must come before the first device is opened.
pub fn keep() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let mut config = CubeClRuntimeConfig::from_current_dir().override_from_env();
        // Off in CubeCL by default, which then keeps what autotune measured alone.
        config.compilation.cache = true;
        let path = &mut config.environment.path;
        match env::var_os(FOLDER).filter(|folder| !folder.is_empty()) {
            Some(folder) => *path = CacheConfig::Directory(PathBuf::from(folder)),
            None if matches!(path, CacheConfig::Target) => *path = CacheConfig::Global,
            None => {}
        }
        // A program that has this crate in it may have said so already; then that holds.
        let _ = CubeClRuntimeConfig::try_set(config);
    });
}

/// The folder in which they are kept.
pub fn folder() -> PathBuf {
    keep();
    CubeClRuntimeConfig::get().environment.path.root()
}
