//! Sums and copies between CUDA devices, of one process or of several, by NVIDIA's NCCL on the memory of CubeCL's
//! tensors.
//!
//! Burn's own `all_reduce` connects devices of one process only, and has neither a reduce-scatter nor an all-gather.
//! NCCL's kernels run on a stream of their own, which waits for everything that was launched before on the device and
//! which everything launched later waits for, so that no call here waits for the device.

// NCCL is in C; the comment at each call says what it reads or writes.
#![allow(unsafe_code)]

mod ffi;

use std::fmt;
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use burn::backend::fusion::custom::TensorSpec;
use burn::backend::tensor::FloatTensor;
use burn::backend::{Backend, Dispatch, backend_extension};
use burn::tensor::{DType, Shape, Tensor};
use burn_cubecl::CubeBackend;
use burn_cubecl::kernel::into_contiguous;
use burn_cubecl::ops::numeric::empty_device_contiguous_dtype;
use burn_cubecl::tensor::CubeTensor;
use cubecl_cuda::CudaRuntime;
use cubecl_runtime::runtime::Runtime;
use cudarc::driver::result::DriverError;

use self::ffi::{Functions, Handle, Operation};
use crate::beside::{Beside, EVENTS_OF_CONTEXTS};
use crate::cuda_parts::Parts;

type Server = <CudaRuntime as Runtime>::Server;

/// The bytes by which the members of a group find each other.
pub type Id = [u8; ffi::ID];

/// Looks for NCCL's library.
pub(crate) fn find() -> Result<(), String> {
    Functions::load().as_ref().map(|_| ()).map_err(Clone::clone)
}

/// Whether several devices can work together on this machine.
///
/// # Errors
///
/// Returns a sentence that says what is missing, where it was looked for and how to get it.
pub fn check() -> Result<(), String> {
    find()?;
    match &Parts::here().driver {
        Ok((version, _)) if version.0 >= EVENTS_OF_CONTEXTS => Ok(()),
        Ok((version, _)) => Err(format!(
            "the NVIDIA driver knows CUDA up to {version}; several devices need one of CUDA 12.5 or newer, whose events \
             put NCCL's work in order with all other"
        )),
        Err(missing) => Err(missing.clone()),
    }
}

/// A new group's id. One member makes it and gives it to all.
///
/// # Errors
///
/// Returns a sentence if NCCL is missing or fails.
pub fn new_id() -> Result<Id, String> {
    Functions::load().as_ref().map_err(Clone::clone)?.id()
}

/// A CUDA device's place in a group. All members call the same operations in the same order.
#[derive(Clone)]
pub struct Member(Arc<Inner>);

struct Inner {
    functions: Functions,
    handle: Handle,
    beside: Beside,
    rank: usize,
    world: usize,
    /// Why there are no further operations. NCCL allows one call at a time, so it is held during each.
    failure: Mutex<Option<String>>,
}

// SAFETY: NCCL's handles are not bound to a thread; every call holds the mutex.
unsafe impl Send for Inner {}
// SAFETY: as above.
unsafe impl Sync for Inner {}

/// A handle on its way between threads.
struct Sent(Handle);

// SAFETY: as for `Inner`.
unsafe impl Send for Sent {}

impl Member {
    /// Joins a group of `world` members with the CUDA device of number `index`; returns when all have joined.
    ///
    /// # Errors
    ///
    /// Returns a sentence if NCCL is missing or fails, or if not all have joined within `limit`.
    pub fn join(index: usize, id: Id, rank: usize, world: usize, limit: Duration) -> Result<Self, String> {
        check()?;
        let functions = *Functions::load().as_ref().map_err(Clone::clone)?;
        let beside = Beside::new(index).map_err(|error| driver_failed(&error))?;
        // NCCL waits without an end for members that do not come, so it does that in a thread that can be left alone.
        let (tell, told) = channel();
        let wait = move || {
            let joined = beside.enter().map_err(|error| driver_failed(&error));
            let joined = joined.and_then(|()| functions.join(id, rank, world));
            // Nobody listens after the time limit.
            let _ = tell.send(joined.map(|handle| (Sent(handle), beside)));
        };
        let thread = std::thread::Builder::new().name("nccl".into()).spawn(wait);
        thread.map_err(|error| format!("no thread could be started to join NCCL's group: {error}"))?;
        let (Sent(handle), beside) = match told.recv_timeout(limit) {
            Ok(joined) => joined?,
            Err(RecvTimeoutError::Timeout) => {
                return Err(format!("not all of {world} devices joined NCCL's group within {} s", limit.as_secs()));
            }
            Err(RecvTimeoutError::Disconnected) => return Err("NCCL panicked while it connected the devices".into()),
        };
        Ok(Self(Arc::new(Inner { functions, handle, beside, rank, world, failure: Mutex::default() })))
    }

    /// This member's number.
    pub fn rank(&self) -> usize {
        self.0.rank
    }

    /// The number of members.
    pub fn world(&self) -> usize {
        self.0.world
    }

    /// Sums tensors `[n]` of f32 over the members: `[n]`.
    ///
    /// # Errors
    ///
    /// Returns a sentence if NCCL fails.
    pub fn all_reduce(&self, tensor: Tensor<1>) -> Result<Tensor<1>, String> {
        self.call(tensor.cast(DType::F32), Operation::AllReduce)
    }

    /// Sums tensors `[world * n]` of f32 over the members and gives each its part of the sums: `[n]`.
    ///
    /// # Errors
    ///
    /// Returns a sentence if NCCL fails.
    pub fn reduce_scatter(&self, tensor: Tensor<1>) -> Result<Tensor<1>, String> {
        self.call(tensor.cast(DType::F32), Operation::ReduceScatter)
    }

    /// Joins tensors `[n]` of any one type in the order of the members: `[world * n]`.
    ///
    /// # Errors
    ///
    /// Returns a sentence if NCCL fails.
    pub fn all_gather(&self, tensor: Tensor<1>) -> Result<Tensor<1>, String> {
        self.call(tensor, Operation::AllGather)
    }

    /// Gives all members the tensor `[n]` of `root`; all bring one of the same length and type.
    ///
    /// # Errors
    ///
    /// Returns a sentence if NCCL fails.
    pub fn broadcast(&self, tensor: Tensor<1>, root: usize) -> Result<Tensor<1>, String> {
        self.call(tensor, Operation::Broadcast(root))
    }

    fn call(&self, tensor: Tensor<1>, operation: Operation) -> Result<Tensor<1>, String> {
        let (device, length) = (tensor.device(), tensor.dims()[0]);
        let length = result_length(length, operation, self.0.world);
        if length == 0 {
            return Ok(Tensor::zeros([0], (&device, tensor.dtype())));
        }
        let call = Call { member: self.clone(), operation };
        let result = Tensor::from_dispatch(Dispatch::nccl_call(tensor.into_dispatch(), call));
        // Burn's fusion would keep it for later, while the other members wait.
        device.flush().map_err(|error| format!("the device did not take NCCL's operation: {error}"))?;
        let failure = self.0.lock();
        match &*failure {
            Some(failure) => Err(failure.clone()),
            // SAFETY: the handle is that of `join`.
            None => unsafe { self.0.functions.failure(self.0.handle) }.map(|()| result),
        }
    }
}

impl fmt::Debug for Member {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "nccl::Member({} of {})", self.0.rank, self.0.world)
    }
}

impl Inner {
    // Nothing that can panic leaves the state inconsistent.
    fn lock(&self) -> MutexGuard<'_, Option<String>> {
        self.failure.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn launch(&self, from: &CubeTensor, to: &CubeTensor, operation: Operation) -> Result<(), String> {
        let [source, target] = [from, to].map(|tensor| tensor.client.get_resource::<Server>(tensor.handle.clone()));
        let lost = |error: &dyn fmt::Debug| format!("a tensor's memory was not found: {error:?}");
        let source = source.map_err(|error| lost(&error))?;
        let target = target.map_err(|error| lost(&error))?;
        let shorter = from.meta.shape().num_elements().min(to.meta.shape().num_elements());
        let count = match operation {
            Operation::AllReduce | Operation::ReduceScatter => shorter,
            Operation::AllGather | Operation::Broadcast(_) => shorter * from.dtype.size(),
        };
        let addresses = [source.resource().ptr, target.resource().ptr];
        // SAFETY: both are memory of the group's device, of at least `count` elements; they are released when later
        // work of the context, which waits for this operation, may use them again.
        let launched = self
            .beside
            .run(|stream| unsafe { self.functions.launch(operation, self.handle, addresses, count, stream.cast()) });
        launched.map_err(|error| driver_failed(&error))?
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        // After a failure NCCL might wait for the others, and the process ends soon.
        if self.lock().is_none() && self.beside.enter().is_ok() {
            // SAFETY: the handle is that of `join`, and nothing uses it any more.
            unsafe { self.functions.leave(self.handle) };
        }
    }
}

fn driver_failed(error: &DriverError) -> String {
    format!("the NVIDIA driver failed: {error}")
}

/// The length of an operation's result.
fn result_length(length: usize, operation: Operation, world: usize) -> usize {
    match operation {
        Operation::AllReduce | Operation::Broadcast(_) => length,
        Operation::ReduceScatter => length / world,
        Operation::AllGather => length * world,
    }
}

/// What [`NcclOps`] does with a tensor.
#[derive(Debug, Clone)]
pub struct Call {
    member: Member,
    operation: Operation,
}

/// NCCL's operations as one that Burn's fusion does not touch.
#[backend_extension(Cube, Fusion)]
pub trait NcclOps: Backend {
    /// The result of the operation on a tensor of one dimension, on the member's device.
    #[fusion(meta = spec)]
    fn nccl_call(tensor: FloatTensor<Self>, call: Call) -> FloatTensor<Self>;
}

fn spec(tensor: &TensorSpec, call: &Call) -> TensorSpec {
    TensorSpec::new(shape(&tensor.shape, call), tensor.dtype)
}

fn shape(shape: &Shape, call: &Call) -> Shape {
    Shape::from(vec![result_length(shape.num_elements(), call.operation, call.member.world())])
}

impl NcclOps for CubeBackend {
    fn nccl_call(tensor: CubeTensor, call: Call) -> CubeTensor {
        let (client, device, dtype) = (tensor.client.clone(), tensor.device.clone(), tensor.dtype);
        let shape = shape(&Shape::from(tensor.meta.shape().to_vec()), &call);
        let result = empty_device_contiguous_dtype(client, device, shape, dtype);
        let tensor = into_contiguous(tensor);
        let inner = &call.member.0;
        let mut failure = inner.lock();
        if failure.is_none() {
            *failure = inner.launch(&tensor, &result, call.operation).err();
        }
        result
    }
}
