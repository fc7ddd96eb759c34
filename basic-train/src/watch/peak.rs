//! The peak arithmetic rates of known GPUs, by the name that the driver reports.

use burn::tensor::DType;

/// A GPU's peak rates in FLOP/s for dense matrices (NVIDIA's data sheets print twice that rate for 2:4 sparsity).
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Peak {
    /// Words in the device's name; all of them must occur.
    words: &'static [&'static str],
    /// Matrix products in f16, and in bf16 if the GPU supports it, accumulated in f32.
    half: f64,
    /// Whether the GPU supports products in bf16.
    bf16: bool,
    /// f32 arithmetic outside the matrix units. Products that the backend computes in TF32 may exceed it.
    single: Option<f64>,
    /// The source of the numbers.
    pub source: &'static str,
}

const fn peak(words: &'static [&'static str], half: f64, single: f64, source: &'static str) -> Peak {
    Peak { words, half: half * 1e12, bf16: true, single: Some(single * 1e12), source }
}

/// More specific names must come first.
const TABLE: [Peak; 20] = [
    Peak { words: &["B200"], half: 2250e12, bf16: true, single: None, source: "NVIDIA DGX B200 datasheet, per GPU" },
    peak(&["GH200"], 989.4, 66.9, "NVIDIA GH200 datasheet"),
    peak(&["H200", "NVL"], 835.5, 60.0, "NVIDIA H200 datasheet, NVL"),
    peak(&["H200"], 989.4, 66.9, "NVIDIA H200 datasheet, SXM"),
    peak(&["H100", "NVL"], 835.5, 60.0, "NVIDIA H100 datasheet, NVL"),
    peak(&["H100", "PCIe"], 756.0, 51.2, "NVIDIA H100 architecture whitepaper, PCIe"),
    peak(&["H100"], 989.4, 66.9, "NVIDIA H100 architecture whitepaper, SXM5"),
    peak(&["A100"], 312.0, 19.5, "NVIDIA A100 datasheet"),
    peak(&["A40"], 149.7, 37.4, "NVIDIA A40 datasheet"),
    peak(&["A30"], 165.0, 10.3, "NVIDIA A30 datasheet"),
    peak(&["A10"], 125.0, 31.2, "NVIDIA A10 datasheet"),
    peak(&["L40S"], 362.05, 91.6, "NVIDIA L40S datasheet"),
    peak(&["L40"], 181.05, 90.5, "NVIDIA L40 datasheet"),
    peak(&["L4"], 121.0, 30.3, "NVIDIA L4 datasheet"),
    peak(&["RTX", "A6000"], 154.8, 38.7, "NVIDIA RTX A6000 datasheet"),
    peak(&["RTX", "6000", "Ada"], 364.2, 91.1, "NVIDIA RTX 6000 Ada datasheet"),
    peak(&["RTX", "4090"], 165.2, 82.6, "NVIDIA Ada GPU architecture whitepaper"),
    peak(&["RTX", "3090"], 71.0, 35.6, "NVIDIA Ampere GA102 whitepaper"),
    Peak {
        words: &["V100", "SXM2"],
        half: 125e12,
        bf16: false,
        single: Some(15.7e12),
        source: "NVIDIA V100 datasheet, SXM2",
    },
    Peak { words: &["T4"], half: 65e12, bf16: false, single: Some(8.1e12), source: "NVIDIA T4 datasheet" },
];

impl Peak {
    /// The GPU with this name; `None` if it is not in the table. Laptop GPUs and other variants of a name run at other
    /// speeds and are not in the table.
    pub fn of(name: &str) -> Option<Self> {
        let words: Vec<&str> = name.split([' ', '-']).collect();
        if words.iter().any(|word| ["Laptop", "Max", "D", "Ti", "SUPER"].contains(word)) {
            return None;
        }
        TABLE.into_iter().find(|gpu| gpu.words.iter().all(|word| words.contains(word)))
    }

    /// FLOP/s of matrix products in this type, if known.
    pub fn rate(&self, dtype: DType) -> Option<f64> {
        match dtype {
            DType::F32 => self.single,
            DType::F16 => Some(self.half),
            DType::BF16 => self.bf16.then_some(self.half),
            _ => None,
        }
    }
}
