//! cuBLASLt's functions, loaded at their first use. NVIDIA's documentation of the library defines their meaning.

// The library is C.
#![allow(unsafe_code)]

use std::ffi::{c_int, c_void};
use std::path::Path;
use std::ptr;

use libloading::Library;

/// The status that every function returns: zero on success.
type Status = c_int;
/// A pointer to any of the library's objects.
pub type Object = *mut c_void;

/// `CUDA_R_32F`, `CUDA_R_16F` and `CUDA_R_16BF` of `cudaDataType_t`.
pub const TYPES: [c_int; 3] = [0, 2, 14];
/// `CUBLAS_COMPUTE_32F`: sums in f32, and no rounding of f32 inputs.
const COMPUTE_F32: c_int = 68;
/// `CUBLASLT_MATMUL_DESC_TRANSA` and `TRANSB`.
const TRANSPOSE: [c_int; 2] = [3, 4];
/// `CUBLASLT_MATRIX_LAYOUT_BATCH_COUNT` and `STRIDED_BATCH_OFFSET`.
const BATCH_COUNT: c_int = 5;
const BATCH_STRIDE: c_int = 6;
/// `CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES` and `MIN_ALIGNMENT_A_BYTES` to `D_BYTES`.
const MOST_WORKSPACE: c_int = 1;
const ALIGNMENTS: [c_int; 4] = [5, 6, 7, 8];

/// `cublasLtMatmulAlgo_t`.
pub type Algorithm = [u64; 8];

/// `cublasLtMatmulHeuristicResult_t`.
#[repr(C)]
struct Found {
    algorithm: Algorithm,
    workspace: usize,
    state: Status,
    waves: f32,
    reserved: [c_int; 4],
}

type Create = unsafe extern "C" fn(*mut Object) -> Status;
type CreateOperation = unsafe extern "C" fn(*mut Object, c_int, c_int) -> Status;
type CreateLayout = unsafe extern "C" fn(*mut Object, c_int, u64, u64, i64) -> Status;
type Destroy = unsafe extern "C" fn(Object) -> Status;
type Set = unsafe extern "C" fn(Object, c_int, *const c_void, usize) -> Status;
type Choose = unsafe extern "C" fn(
    Object,
    Object,
    Object,
    Object,
    Object,
    Object,
    Object,
    c_int,
    *mut Found,
    *mut c_int,
) -> Status;
type Multiply = unsafe extern "C" fn(
    Object,
    Object,
    *const c_void,
    *const c_void,
    Object,
    *const c_void,
    Object,
    *const c_void,
    *const c_void,
    Object,
    *mut c_void,
    Object,
    *const Algorithm,
    *mut c_void,
    usize,
    *mut c_void,
) -> Status;

/// Pointers to the library's functions.
#[derive(Clone, Copy)]
pub struct Functions {
    create: Create,
    create_operation: CreateOperation,
    set_operation: Set,
    create_layout: CreateLayout,
    set_layout: Set,
    create_preference: Create,
    set_preference: Set,
    destroy_preference: Destroy,
    choose: Choose,
    multiply: Multiply,
}

/// The file names of the library.
const NAMES: [&str; 3] = ["libcublasLt.so.13", "libcublasLt.so.12", "libcublasLt.so"];

impl Functions {
    /// Loads the library from the loader's path or from one of a toolkit's folders; `None` if it is not found or lacks
    /// a function. It stays loaded until the process ends.
    pub fn load(folders: &[&Path]) -> Option<Self> {
        let beside = folders.iter().flat_map(|folder| NAMES.map(|name| folder.join(name).into_os_string()));
        let mut names = NAMES.iter().map(|name| (*name).into()).chain(beside);
        // SAFETY: the library's initializers are those that run in any program that links it.
        let library = names.find_map(|name| unsafe { Library::new(name) }.ok())?;
        // SAFETY: the types are those of NVIDIA's header.
        let functions = unsafe {
            Self {
                create: *library.get(b"cublasLtCreate").ok()?,
                create_operation: *library.get(b"cublasLtMatmulDescCreate").ok()?,
                set_operation: *library.get(b"cublasLtMatmulDescSetAttribute").ok()?,
                create_layout: *library.get(b"cublasLtMatrixLayoutCreate").ok()?,
                set_layout: *library.get(b"cublasLtMatrixLayoutSetAttribute").ok()?,
                create_preference: *library.get(b"cublasLtMatmulPreferenceCreate").ok()?,
                set_preference: *library.get(b"cublasLtMatmulPreferenceSetAttribute").ok()?,
                destroy_preference: *library.get(b"cublasLtMatmulPreferenceDestroy").ok()?,
                choose: *library.get(b"cublasLtMatmulAlgoGetHeuristic").ok()?,
                multiply: *library.get(b"cublasLtMatmul").ok()?,
            }
        };
        std::mem::forget(library);
        Some(functions)
    }

    /// Creates a handle for the current context.
    pub fn handle(&self) -> Option<Object> {
        let mut handle = ptr::null_mut();
        // SAFETY: writes the handle.
        (unsafe { (self.create)(&mut handle) } == 0).then_some(handle)
    }

    /// Creates the description of a product; `turned` says which operands are read transposed.
    pub fn operation(&self, turned: [bool; 2]) -> Option<Object> {
        let mut operation = ptr::null_mut();
        // SAFETY: writes the object. The type of the scale is f32.
        if unsafe { (self.create_operation)(&mut operation, COMPUTE_F32, TYPES[0]) } != 0 {
            return None;
        }
        for (attribute, turned) in TRANSPOSE.into_iter().zip(turned) {
            // CUBLAS_OP_N is 0 and CUBLAS_OP_T is 1.
            set(self.set_operation, operation, attribute, &c_int::from(turned))?;
        }
        Some(operation)
    }

    /// Creates the layout of the matrices of a batch.
    pub fn layout(
        &self,
        dtype: c_int,
        [rows, columns]: [u64; 2],
        leading: i64,
        batch: i32,
        stride: i64,
    ) -> Option<Object> {
        let mut layout = ptr::null_mut();
        // SAFETY: writes the object.
        if unsafe { (self.create_layout)(&mut layout, dtype, rows, columns, leading) } != 0 {
            return None;
        }
        set(self.set_layout, layout, BATCH_COUNT, &batch)?;
        set(self.set_layout, layout, BATCH_STRIDE, &stride)?;
        Some(layout)
    }

    /// The algorithm that the library expects to be fastest.
    pub fn choose(
        &self,
        handle: Object,
        operation: Object,
        [a, b, d]: [Object; 3],
        workspace: usize,
        [of_a, of_b, of_d]: [u32; 3],
    ) -> Option<Algorithm> {
        let mut preference = ptr::null_mut();
        // SAFETY: writes the object.
        if unsafe { (self.create_preference)(&mut preference) } != 0 {
            return None;
        }
        set(self.set_preference, preference, MOST_WORKSPACE, &(workspace as u64))?;
        for (attribute, alignment) in ALIGNMENTS.into_iter().zip([of_a, of_b, of_d, of_d]) {
            set(self.set_preference, preference, attribute, &alignment)?;
        }
        let mut found = Found { algorithm: [0; 8], workspace: 0, state: 0, waves: 0.0, reserved: [0; 4] };
        let mut count = 0;
        // SAFETY: the objects are alive; at most one result is written.
        let status = unsafe { (self.choose)(handle, operation, a, b, d, d, preference, 1, &mut found, &mut count) };
        // SAFETY: nothing refers to the preference any more.
        unsafe { (self.destroy_preference)(preference) };
        (status == 0 && count == 1 && found.state == 0).then_some(found.algorithm)
    }

    /// Computes `d = a b` on a stream; returns whether it was launched.
    ///
    /// # Safety
    ///
    /// The addresses must be of device memory with the sizes and strides of the layouts, and nothing else may use that
    /// of `d` during this call.
    pub unsafe fn multiply(
        &self,
        handle: Object,
        operation: Object,
        algorithm: &Algorithm,
        [a, b, d]: [(u64, Object); 3],
        (workspace, bytes): (u64, usize),
        stream: *mut c_void,
    ) -> bool {
        let (one, zero) = (1.0_f32, 0.0_f32);
        // SAFETY: guaranteed by the caller.
        let status = unsafe {
            (self.multiply)(
                handle,
                operation,
                ptr::from_ref(&one).cast(),
                a.0 as *const c_void,
                a.1,
                b.0 as *const c_void,
                b.1,
                ptr::from_ref(&zero).cast(),
                d.0 as *const c_void,
                d.1,
                d.0 as *mut c_void,
                d.1,
                algorithm,
                workspace as *mut c_void,
                bytes,
                stream,
            )
        };
        status == 0
    }
}

fn set<T>(function: Set, object: Object, attribute: c_int, value: &T) -> Option<()> {
    // SAFETY: reads the bytes of a value that outlives the call.
    let status = unsafe { function(object, attribute, ptr::from_ref(value).cast(), size_of::<T>()) };
    (status == 0).then_some(())
}
