//! Reads and writes tensors on disk, and measures the distance of two tensors.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};

/// The f32 tensors of a file by name.
pub type Tensors = BTreeMap<String, Tensor>;

/// A tensor of f32.
#[derive(Debug, Clone, PartialEq)]
pub struct Tensor {
    /// The shape.
    pub shape: Vec<usize>,
    /// The values, the last axis fastest.
    pub values: Vec<f32>,
}

/// Reads a safetensors file of f32.
#[track_caller]
pub fn read(path: &Path) -> Tensors {
    let bytes = fs::read(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let file = SafeTensors::deserialize(&bytes).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let tensor = |view: &TensorView| {
        assert_eq!(view.dtype(), Dtype::F32);
        let values = view.data().chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]));
        Tensor { shape: view.shape().to_vec(), values: values.collect() }
    };
    file.tensors().iter().map(|(name, view)| (name.clone(), tensor(view))).collect()
}

/// Writes a safetensors file of f32.
pub fn write(path: &Path, tensors: &Tensors) {
    let bytes: BTreeMap<&str, Vec<u8>> = tensors
        .iter()
        .map(|(name, tensor)| (name.as_str(), tensor.values.iter().flat_map(|x| x.to_le_bytes()).collect()))
        .collect();
    let view = |name: &str| {
        TensorView::new(Dtype::F32, tensors[name].shape.clone(), &bytes[name]).expect("the shape fits the values")
    };
    let views: Vec<(&str, TensorView)> = bytes.keys().map(|name| (*name, view(name))).collect();
    fs::write(path, safetensors::serialize(views, None).expect("the tensors serialize")).expect("the file is written");
}

/// `|a - b| / |b|` of two numbers; `|a|` if `b` is zero.
pub fn relative(a: f64, b: f64) -> f64 {
    (a - b).abs() / if b == 0.0 { 1.0 } else { b.abs() }
}

/// `|a - b| / |b|` in the Euclidean norm; `|a|` if `b` is zero.
pub fn relative_l2(a: &Tensor, b: &Tensor) -> f64 {
    let norm = |values: &mut dyn Iterator<Item = f64>| values.map(|x| x * x).sum::<f64>().sqrt();
    let apart = norm(&mut a.values.iter().zip(&b.values).map(|(a, b)| f64::from(*a) - f64::from(*b)));
    let size = norm(&mut b.values.iter().map(|b| f64::from(*b)));
    if size == 0.0 { apart } else { apart / size }
}
