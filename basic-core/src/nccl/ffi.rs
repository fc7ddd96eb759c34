//! NCCL's functions, loaded at their first use. NVIDIA's documentation of the library defines their meaning.
//!
//! cudarc binds them too, but does not look for `libnccl.so.2`, the only name that the library has where its
//! development files are not installed.

// The library is in C.
#![allow(unsafe_code)]

use std::ffi::{CStr, c_char, c_int, c_void};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use libloading::Library;

/// The result that every function returns: zero on success.
type Status = c_int;
/// `ncclComm_t`.
pub type Handle = *mut c_void;
/// `cudaStream_t`.
pub type Stream = *mut c_void;

/// `ncclUint8` and `ncclFloat32` of `ncclDataType_t`.
pub const BYTES: c_int = 1;
pub const F32: c_int = 7;
/// `ncclSum` of `ncclRedOp_t`.
const SUM: c_int = 0;

/// `NCCL_UNIQUE_ID_BYTES`.
pub const ID: usize = 128;

/// `ncclUniqueId`.
#[repr(C)]
#[derive(Clone, Copy)]
struct UniqueId([c_char; ID]);

type GetId = unsafe extern "C" fn(*mut UniqueId) -> Status;
type Join = unsafe extern "C" fn(*mut Handle, c_int, UniqueId, c_int) -> Status;
type Leave = unsafe extern "C" fn(Handle) -> Status;
type Async = unsafe extern "C" fn(Handle, *mut Status) -> Status;
type Text = unsafe extern "C" fn(Status) -> *const c_char;
type Reduce = unsafe extern "C" fn(*const c_void, *mut c_void, usize, c_int, c_int, Handle, Stream) -> Status;
type Gather = unsafe extern "C" fn(*const c_void, *mut c_void, usize, c_int, Handle, Stream) -> Status;

/// Pointers to the library's functions.
#[derive(Debug, Clone, Copy)]
pub struct Functions {
    get_id: GetId,
    join: Join,
    leave: Leave,
    error: Async,
    text: Text,
    all_reduce: Reduce,
    reduce_scatter: Reduce,
    all_gather: Gather,
    // The root stands where the reductions have their operation.
    broadcast: Reduce,
}

/// The file names of the library.
const NAMES: [&str; 2] = ["libnccl.so.2", "libnccl.so"];

/// An operation on device memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Operation {
    /// Sums f32 values; every rank gets the sums.
    AllReduce,
    /// Sums f32 values; every rank gets its part of the sums.
    ReduceScatter,
    /// Joins the bytes of all ranks.
    AllGather,
    /// Gives all ranks the bytes of one.
    Broadcast(usize),
}

impl Functions {
    /// The library's functions, or a sentence that says where it was looked for.
    pub fn load() -> &'static Result<Self, String> {
        static FUNCTIONS: OnceLock<Result<Functions, String>> = OnceLock::new();
        FUNCTIONS.get_or_init(|| Self::load_from(&folders()))
    }

    fn load_from(folders: &[PathBuf]) -> Result<Self, String> {
        let beside = folders.iter().flat_map(|folder| NAMES.map(|name| folder.join(name).into_os_string()));
        let mut names = NAMES.iter().map(|name| (*name).into()).chain(beside);
        // SAFETY: the library's initializers are those that run in any program that links it.
        let Some(library) = names.find_map(|name| unsafe { Library::new(name) }.ok()) else {
            let folders: Vec<String> = folders.iter().map(|folder| folder.display().to_string()).collect();
            let looked = match &folders[..] {
                [] => String::new(),
                folders => format!(", nor in {}", folders.join(" or ")),
            };
            return Err(format!(
                "NCCL (libnccl.so.2), which several devices add their gradients with, is not in the loader's \
                 path{looked}: install libnccl2, or `pip install nvidia-nccl-cu12` and add its folder nvidia/nccl/lib to \
                 LD_LIBRARY_PATH, or train on one device"
            ));
        };
        let old = |name: &str| format!("NCCL's library lacks {name}: install NCCL 2.4 or newer");
        macro_rules! function {
            ($name:literal) => {
                // SAFETY: the type is that of NVIDIA's header.
                *unsafe { library.get($name.as_bytes()) }.map_err(|_| old($name))?
            };
        }
        let functions = Self {
            get_id: function!("ncclGetUniqueId"),
            join: function!("ncclCommInitRank"),
            leave: function!("ncclCommDestroy"),
            error: function!("ncclCommGetAsyncError"),
            text: function!("ncclGetErrorString"),
            all_reduce: function!("ncclAllReduce"),
            reduce_scatter: function!("ncclReduceScatter"),
            all_gather: function!("ncclAllGather"),
            broadcast: function!("ncclBroadcast"),
        };
        // It stays loaded until the process ends.
        std::mem::forget(library);
        Ok(functions)
    }

    /// A new group's id.
    pub fn id(&self) -> Result<[u8; ID], String> {
        let mut id = UniqueId([0; ID]);
        // SAFETY: writes the id.
        self.done(unsafe { (self.get_id)(&mut id) }, "make an id")?;
        Ok(id.0.map(|byte| byte as u8))
    }

    /// Joins a group on the current context's device, and returns when all have joined.
    pub fn join(&self, id: [u8; ID], rank: usize, world: usize) -> Result<Handle, String> {
        let (rank, world) = (rank as c_int, world as c_int);
        let mut handle = std::ptr::null_mut();
        // SAFETY: writes the handle.
        let status = unsafe { (self.join)(&mut handle, world, UniqueId(id.map(|byte| byte as c_char)), rank) };
        self.done(status, "connect the devices")?;
        Ok(handle)
    }

    /// Launches an operation on a stream. `count` is the length, in elements of the operation's type, of the shorter one
    /// of the two buffers.
    ///
    /// # Safety
    ///
    /// The handle must come from [`Functions::join`]; the addresses must be of memory of its device that is long enough,
    /// and that nothing else uses before the stream has come to the operation's end.
    pub unsafe fn launch(
        &self,
        operation: Operation,
        handle: Handle,
        [from, to]: [u64; 2],
        count: usize,
        stream: Stream,
    ) -> Result<(), String> {
        let (from, to) = (from as *const c_void, to as *mut c_void);
        // SAFETY: guaranteed by the caller.
        let status = unsafe {
            match operation {
                Operation::AllReduce => (self.all_reduce)(from, to, count, F32, SUM, handle, stream),
                Operation::ReduceScatter => (self.reduce_scatter)(from, to, count, F32, SUM, handle, stream),
                Operation::AllGather => (self.all_gather)(from, to, count, BYTES, handle, stream),
                Operation::Broadcast(root) => (self.broadcast)(from, to, count, BYTES, root as c_int, handle, stream),
            }
        };
        self.done(status, "start an operation")
    }

    /// An error that an operation ended with after it was launched.
    ///
    /// # Safety
    ///
    /// The handle must come from [`Functions::join`].
    pub unsafe fn failure(&self, handle: Handle) -> Result<(), String> {
        let mut status = 0;
        // SAFETY: guaranteed by the caller; writes the status.
        let asked = unsafe { (self.error)(handle, &mut status) };
        self.done(asked, "tell its state").and_then(|()| self.done(status, "finish an operation"))
    }

    /// Ends a group on this rank.
    ///
    /// # Safety
    ///
    /// The handle must come from [`Functions::join`] and is invalid afterwards.
    pub unsafe fn leave(&self, handle: Handle) {
        // SAFETY: guaranteed by the caller. Nothing could be done about a failure.
        unsafe { (self.leave)(handle) };
    }

    fn done(&self, status: Status, what: &str) -> Result<(), String> {
        if status == 0 {
            return Ok(());
        }
        // SAFETY: the library returns a text that it never frees, or null.
        let text = unsafe {
            let text = (self.text)(status);
            if text.is_null() { None } else { Some(CStr::from_ptr(text).to_string_lossy()) }
        };
        let text = text.unwrap_or_else(|| "unknown".into());
        Err(format!("NCCL could not {what}: {text} ({status}); NCCL_DEBUG=INFO makes it say more"))
    }
}

/// The CUDA toolkit's folders, and the one in which pip puts NCCL beside a toolkit of pip's.
fn folders() -> Vec<PathBuf> {
    let mut folders = crate::cuda_parts::toolkit_libraries();
    let toolkit = cubecl_cuda::install::cuda_path();
    folders.extend(toolkit.as_deref().and_then(Path::parent).map(|pip| pip.join("nccl/lib")));
    folders.retain(|folder| folder.is_dir());
    folders
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_library_is_an_error_that_says_where_it_was_looked_for() {
        // Where the loader knows NCCL, it is found.
        if let Err(error) = Functions::load_from(&["/nowhere/lib".into()]) {
            assert!(error.contains("libnccl.so.2") && error.contains("nor in /nowhere/lib"), "{error}");
        }
    }
}
