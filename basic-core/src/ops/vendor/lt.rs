//! Runs matrix products with cuBLASLt, on a stream beside CubeCL's ([`Beside`]).
//!
//! Only CubeCL's own thread for the device knows addresses. A caller that asks for them waits three times a product, which
//! is some 1,900 times in a finetune step of a small model. With `BASIC_CUBLAS=ahead` that thread launches the product
//! itself, in the order of its own launches, and the caller goes on.

// The library is in C; the comment at each call says what it reads or writes.
#![allow(unsafe_code)]

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use burn::tensor::{DType, Shape};
use burn_cubecl::CubeDevice;
use burn_cubecl::kernel::into_contiguous;
use burn_cubecl::ops::numeric::empty_device_contiguous_dtype;
use burn_cubecl::tensor::CubeTensor;
use cubecl::device_handle::DeviceHandle;
use cubecl_cuda::CudaRuntime;
use cubecl_environment::backtrace::BackTrace;
use cubecl_environment::stream::StreamId;
use cubecl_runtime::runtime::Runtime;
use cubecl_runtime::server::{ServerError, ServerStorage};
use cubecl_runtime::storage::{ComputeStorage, ManagedResource};
use cubecl_server::stream::failed_writing;
use cudarc::driver::result as driver;
use cudarc::driver::sys as cuda;

use super::ffi::{Algorithm, Functions, Object, TYPES};
use crate::beside::{Beside, EVENTS_OF_CONTEXTS};
use crate::cuda_parts::{Parts, toolkit_libraries};

type Server = <CudaRuntime as Runtime>::Server;

/// Scratch memory for the algorithms, in bytes: NVIDIA's recommendation for Hopper.
const WORKSPACE: usize = 32 << 20;
/// cuBLASLt makes no use of larger alignments.
const ALIGNED: u64 = 256;

/// The library's functions; `None` if the library is missing or the driver cannot order its work.
fn functions() -> Option<Functions> {
    static FUNCTIONS: OnceLock<Option<Functions>> = OnceLock::new();
    *FUNCTIONS.get_or_init(|| {
        let parts = Parts::here();
        let orders = parts.driver.as_ref().is_ok_and(|(version, _)| version.0 >= EVENTS_OF_CONTEXTS);
        let folders = toolkit_libraries();
        let folders: Vec<&Path> = folders.iter().map(PathBuf::as_path).collect();
        if orders { Functions::load(&folders) } else { None }
    })
}

/// Whether cuBLASLt can compute products on this machine.
pub fn is_here() -> bool {
    functions().is_some()
}

/// The layout of an operand or of the result.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Matrix {
    rows: u64,
    columns: u64,
    /// Elements from one column to the next in BLAS's terms, which is from one row to the next here.
    leading: i64,
    /// Whether rows and columns are exchanged when it is read.
    turned: bool,
    /// Elements from one matrix of the batch to the next.
    stride: i64,
    dtype: i32,
    alignment: u32,
}

/// Everything that the choice of an algorithm depends on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Key {
    first: Matrix,
    second: Matrix,
    result: Matrix,
    batch: i32,
}

struct Plan {
    operation: Object,
    layouts: [Object; 3],
    algorithm: Algorithm,
}

struct Lt {
    functions: Functions,
    handle: Object,
    beside: Beside,
    workspace: cuda::CUdeviceptr,
    plans: HashMap<Key, Option<Plan>>,
}

// SAFETY: every use holds the mutex of a `Library`, and none of the handles is bound to a thread.
unsafe impl Send for Lt {}

/// The library's state for a device.
#[derive(Clone)]
struct Library {
    lt: Arc<Mutex<Lt>>,
    /// CubeCL's own thread for the device.
    server: DeviceHandle<Server>,
}

impl Library {
    /// The library for the device of a tensor; `None` if it could not be set up.
    fn of(tensor: &CubeTensor) -> Option<Self> {
        static LIBRARIES: OnceLock<Mutex<HashMap<usize, Option<Library>>>> = OnceLock::new();
        let CubeDevice::Cuda(device) = &tensor.device else { return None };
        let mut libraries = LIBRARIES.get_or_init(Mutex::default).lock().unwrap_or_else(PoisonError::into_inner);
        let new = || {
            let server = DeviceHandle::<Server>::new(tensor.client.service_id().device);
            Some(Self { lt: Arc::new(Mutex::new(Lt::new(device.index)?)), server })
        };
        libraries.entry(device.index).or_insert_with(new).clone()
    }
}

fn data_type(dtype: DType) -> Option<i32> {
    let [single, half, brain] = TYPES;
    match dtype {
        DType::F32 => Some(single),
        DType::F16 => Some(half),
        DType::BF16 => Some(brain),
        _ => None,
    }
}

/// The product, or `None` if cuBLASLt does not compute it: another type, a dimension of zero, or the library refuses.
pub fn product(a: &CubeTensor, b: &CubeTensor, dtype: DType) -> Option<CubeTensor> {
    let (own, out) = (data_type(a.dtype)?, data_type(dtype)?);
    let same = a.dtype == b.dtype && a.qparams.is_none() && b.qparams.is_none();
    // From 16-bit inputs, cuBLASLt writes either their own type or f32.
    if !same || !(dtype == a.dtype || dtype == DType::F32) {
        return None;
    }
    let shape = super::product_shape(&Shape::from(a.meta.shape().to_vec()), &Shape::from(b.meta.shape().to_vec()));
    if shape.num_elements() == 0 || a.meta.shape().num_elements() == 0 {
        return None;
    }
    let library = Library::of(a)?;
    let (a, b) = (readable(a.clone()), readable(b.clone()));
    // The result's rows have no gaps; otherwise the next operation would copy them.
    let result = empty_device_contiguous_dtype(a.client.clone(), a.device.clone(), shape, dtype);
    let call = Call::new([(&a, own), (&b, own), (&result, out)])?;
    if !library.lt.lock().unwrap_or_else(PoisonError::into_inner).plans(call.key) {
        return None;
    }

    let tensors = [&a, &b, &result];
    if !super::ahead() {
        let found = tensors.map(|tensor| tensor.client.get_resource::<Server>(tensor.handle.clone()));
        return launch(&library.lt, &call, &found).ok().map(|()| result);
    }
    // Bindings, as in CubeCL's own launches: they keep the memory, and its owner may still change it in place.
    let bindings = tensors.map(|tensor| tensor.handle.clone().binding());
    let (stream, lt) = (StreamId::current(), library.lt.clone());
    library.server.submit(move |server| {
        let written = bindings[2].clone();
        let found = bindings.map(|binding| server.get_resource(binding, stream));
        // As after a launch that failed, whatever reads the result is told why.
        if let Err(error) = launch(&lt, &call, &found) {
            failed_writing(server, stream, vec![written], error);
        }
    });
    Some(result)
}

/// The memory of a tensor, held in its place.
type Found = Result<ManagedResource<<<Server as ServerStorage>::Storage as ComputeStorage>::Resource>, ServerError>;

/// Launches a product of tensors with this memory. It may be released afterwards: whatever is launched later in the context
/// waits for the product.
fn launch(lt: &Mutex<Lt>, call: &Call, found: &[Found; 3]) -> Result<(), ServerError> {
    let mut addresses = [0; 3];
    for (address, found) in addresses.iter_mut().zip(found) {
        *address = found.as_ref().map_err(ServerError::clone)?.resource().ptr;
    }
    let done = lt.lock().unwrap_or_else(PoisonError::into_inner).run(call, addresses);
    done.ok_or_else(|| {
        let reason = format!("cuBLASLt could not multiply; {}=0 multiplies with CubeCL", super::SWITCH);
        ServerError::Generic { reason, backtrace: BackTrace::capture() }
    })
}

/// The tensor, copied if BLAS cannot read the layout of its last two dimensions.
fn readable(tensor: CubeTensor) -> CubeTensor {
    match turned(&tensor) {
        Some(_) if !tensor.meta.is_tiled() => tensor,
        _ => into_contiguous(tensor),
    }
}

/// Whether a matrix is column-major; `None` if it is neither row-major nor column-major.
fn turned(tensor: &CubeTensor) -> Option<bool> {
    let (shape, strides) = (tensor.meta.shape(), tensor.meta.strides());
    let rank = shape.len();
    let (rows, columns) = (shape[rank - 2], shape[rank - 1]);
    let (down, along) = (strides[rank - 2], strides[rank - 1]);
    if (along == 1 || columns == 1) && (down >= columns || rows == 1) {
        Some(false)
    } else if (down == 1 || rows == 1) && (along >= rows || columns == 1) {
        Some(true)
    } else {
        None
    }
}

/// A tensor's strides over the leading dimensions, zero where it is repeated.
fn leading(tensor: &CubeTensor, dims: &[usize]) -> Vec<usize> {
    let (shape, strides) = (tensor.meta.shape(), tensor.meta.strides());
    (0..dims.len()).map(|i| if shape[i] == 1 { 0 } else { strides[i] }).collect()
}

/// A product as the library is asked for it: one call for each of `offsets`.
struct Call {
    key: Key,
    /// Elements from each tensor's beginning to the matrices of a call.
    offsets: Vec<[usize; 3]>,
    /// Bytes of an element of each tensor.
    sizes: [u64; 3],
}

impl Call {
    /// BLAS is column-major: a row-major `C = A B` is a column-major `C' = B' A'`, so B is BLAS's first operand.
    fn new(tensors: [(&CubeTensor, i32); 3]) -> Option<Self> {
        let [(a, _), (b, _), (result, _)] = tensors;
        let rank = result.meta.shape().len();
        let dims = result.meta.shape()[..rank - 2].to_vec();
        let strides = [leading(a, &dims), leading(b, &dims), leading(result, &dims)];
        // The last leading dimension longer than one becomes BLAS's batch; there is one call per index of the others.
        let inner = dims.iter().rposition(|dim| *dim > 1);
        let batch = inner.map_or(1, |inner| dims[inner]);
        let stride = |tensor: usize| inner.map_or(0, |inner| strides[tensor][inner]);
        let mut offsets = vec![[0_usize; 3]];
        for (dim, count) in dims.iter().enumerate() {
            if Some(dim) != inner {
                let step = [0, 1, 2].map(|tensor| strides[tensor][dim]);
                let walk = |at: &[usize; 3]| {
                    let at = *at;
                    (0..*count).map(move |i| [0, 1, 2].map(|tensor| at[tensor] + i * step[tensor])).collect::<Vec<_>>()
                };
                offsets = offsets.iter().flat_map(walk).collect();
            }
        }
        let sizes = tensors.map(|(tensor, _)| tensor.dtype.size() as u64);
        // The largest power of two, up to `ALIGNED`, that divides every address of the call. CubeCL's memory begins at
        // multiples of more than `ALIGNED`, so that a tensor's place in it decides.
        let aligned = |tensor: usize| {
            let begin = tensors[tensor].0.handle.offset_start.unwrap_or(0);
            let all = offsets.iter().map(|offset| begin + offset[tensor] as u64 * sizes[tensor]);
            let all = all.chain([stride(tensor) as u64 * sizes[tensor]]);
            all.fold(ALIGNED, |least, x| least.min(alignment(x)))
        };
        let matrix = |tensor: usize| -> Option<Matrix> {
            let (cube, dtype) = tensors[tensor];
            let turned = turned(cube)?;
            let (shape, steps) = (cube.meta.shape(), cube.meta.strides());
            let (rows, columns) = (shape[rank - 2], shape[rank - 1]);
            let (long, wide, step) = match turned {
                false => (columns, rows, steps[rank - 2]),
                true => (rows, columns, steps[rank - 1]),
            };
            Some(Matrix {
                rows: long as u64,
                columns: wide as u64,
                leading: step.max(long) as i64,
                turned,
                stride: stride(tensor) as i64,
                dtype,
                alignment: aligned(tensor) as u32,
            })
        };
        let key = Key { first: matrix(1)?, second: matrix(0)?, result: matrix(2)?, batch: i32::try_from(batch).ok()? };
        (!key.result.turned).then_some(Self { key, offsets, sizes })
    }

    /// Whether tensors at these addresses are aligned as the algorithm was chosen for.
    fn fits(&self, addresses: [u64; 3]) -> bool {
        let matrices = [self.key.second, self.key.first, self.key.result];
        matrices.iter().zip(addresses).enumerate().all(|(tensor, (matrix, address))| {
            let begin = self.offsets.iter().map(|offset| address + offset[tensor] as u64 * self.sizes[tensor]);
            begin.map(alignment).all(|found| found >= u64::from(matrix.alignment))
        })
    }
}

/// The largest power of two, up to `ALIGNED`, that divides `x`.
fn alignment(x: u64) -> u64 {
    if x == 0 { ALIGNED } else { ALIGNED.min(x & x.wrapping_neg()) }
}

impl Lt {
    fn new(index: usize) -> Option<Self> {
        let functions = functions()?;
        let beside = Beside::new(index).ok()?;
        Some(Self {
            functions,
            handle: functions.handle()?,
            beside,
            // SAFETY: plain device memory, kept until the process ends.
            workspace: unsafe { driver::malloc_sync(WORKSPACE) }.ok()?,
            plans: HashMap::new(),
        })
    }

    /// Whether the library has an algorithm for such a product.
    fn plans(&mut self, key: Key) -> bool {
        if self.beside.enter().is_err() {
            return false;
        }
        if !self.plans.contains_key(&key) {
            let plan = self.plan(&key);
            self.plans.insert(key, plan);
        }
        self.plans.get(&key).is_some_and(Option::is_some)
    }

    /// Launches the product of matrices at these addresses, for which the library has an algorithm.
    fn run(&mut self, call: &Call, addresses: [u64; 3]) -> Option<()> {
        let plan = self.plans.get(&call.key)?.as_ref().filter(|_| call.fits(addresses))?;
        let launch = |stream: cuda::CUstream| {
            let mut fine = true;
            for offset in &call.offsets {
                let at = |tensor: usize| addresses[tensor] + offset[tensor] as u64 * call.sizes[tensor];
                let [first, second, third] = plan.layouts;
                let operands = [(at(1), first), (at(0), second), (at(2), third)];
                let scratch = (self.workspace, WORKSPACE);
                // SAFETY: the addresses are those of tensors that the caller holds, with the sizes and strides of the
                // plan.
                fine &= unsafe {
                    self.functions.multiply(
                        self.handle,
                        plan.operation,
                        &plan.algorithm,
                        operands,
                        scratch,
                        stream.cast(),
                    )
                };
            }
            fine
        };
        self.beside.run(launch).ok()?.then_some(())
    }

    fn plan(&self, key: &Key) -> Option<Plan> {
        let Key { first, second, result, batch } = *key;
        let operation = self.functions.operation([first.turned, second.turned])?;
        let layout = |m: Matrix| self.functions.layout(m.dtype, [m.rows, m.columns], m.leading, batch, m.stride);
        let layouts = [layout(first)?, layout(second)?, layout(result)?];
        let alignments = [first.alignment, second.alignment, result.alignment];
        let algorithm = self.functions.choose(self.handle, operation, layouts, WORKSPACE, alignments)?;
        Some(Plan { operation, layouts, algorithm })
    }
}
