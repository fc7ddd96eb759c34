//! Work on a CUDA stream of its own, in order with CubeCL's.
//!
//! CubeCL does not say on which stream it computes a tensor. Such work therefore waits for everything launched before it
//! in the device's context, and everything launched later waits for it (`cuCtxRecordEvent`, `cuCtxWaitEvent`; CUDA
//! 12.5). CubeCL launches all pending work before it hands out a pointer.

// The driver is in C; the comment at each call says what it reads or writes.
#![allow(unsafe_code)]

use cudarc::driver::result::{self as driver, DriverError};
use cudarc::driver::sys as cuda;

/// The first CUDA version of the driver with `cuCtxRecordEvent`.
pub const EVENTS_OF_CONTEXTS: i32 = 12050;

/// A stream and the events that order it.
#[derive(Debug)]
pub struct Beside {
    context: cuda::CUcontext,
    stream: cuda::CUstream,
    before: cuda::CUevent,
    after: cuda::CUevent,
}

// SAFETY: none of the handles is bound to a thread.
unsafe impl Send for Beside {}
// SAFETY: the driver's functions may be called from several threads at once.
unsafe impl Sync for Beside {}

impl Beside {
    /// A stream on the device of this number, whose context becomes the current one of this thread.
    pub fn new(index: usize) -> Result<Self, DriverError> {
        let device = driver::device::get(i32::try_from(index).unwrap_or(i32::MAX))?;
        // SAFETY: the primary context is CubeCL's; it is not released here and so lives until the process ends.
        let context = unsafe { driver::primary_ctx::retain(device) }?;
        // SAFETY: the context was just retained.
        unsafe { driver::ctx::set_current(context) }?;
        let event = || driver::event::create(cuda::CUevent_flags::CU_EVENT_DISABLE_TIMING);
        let stream = driver::stream::create(driver::stream::StreamKind::NonBlocking)?;
        Ok(Self { context, stream, before: event()?, after: event()? })
    }

    /// Makes the device's context the current one of this thread.
    pub fn enter(&self) -> Result<(), DriverError> {
        // SAFETY: the context was retained in `new`.
        unsafe { driver::ctx::set_current(self.context) }
    }

    /// Calls `work`, which launches on the stream, after all that the context has launched and before all that it
    /// launches later.
    pub fn run<T>(&self, work: impl FnOnce(cuda::CUstream) -> T) -> Result<T, DriverError> {
        self.enter()?;
        // SAFETY: `new` made the events, the stream and the context; a wait captures the event's state at the call.
        unsafe {
            cuda::cuCtxRecordEvent(self.context, self.before).result()?;
            driver::stream::wait_event(self.stream, self.before, cuda::CUevent_wait_flags::CU_EVENT_WAIT_DEFAULT)?;
        }
        let done = work(self.stream);
        // SAFETY: as above.
        unsafe {
            driver::event::record(self.after, self.stream)?;
            cuda::cuCtxWaitEvent(self.context, self.after).result()?;
        }
        Ok(done)
    }
}
