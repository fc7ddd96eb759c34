//! The constants of the GGUF format, version 3, and the types of tensors (gguf.md and ggml.h of ggml-org/ggml).

use super::super::floats::FloatType;

/// The first four bytes of a file.
pub(super) const MAGIC: [u8; 4] = *b"GGUF";

/// The version that is written; version 2 has the same layout.
pub(super) const VERSION: u32 = 3;

/// The alignment of tensors unless a file states another one.
pub(super) const ALIGNMENT: u64 = 32;

/// The key of the alignment.
pub(super) const ALIGNMENT_KEY: &str = "general.alignment";

/// The number of values in a block of a quantized type.
pub(super) const BLOCK: usize = 32;

/// The types of values in the metadata, by their numbers in a file.
pub(super) mod value {
    pub const U8: u32 = 0;
    pub const I8: u32 = 1;
    pub const U16: u32 = 2;
    pub const I16: u32 = 3;
    pub const U32: u32 = 4;
    pub const I32: u32 = 5;
    pub const F32: u32 = 6;
    pub const BOOL: u32 = 7;
    pub const STRING: u32 = 8;
    pub const ARRAY: u32 = 9;
    pub const U64: u32 = 10;
    pub const I64: u32 = 11;
    pub const F64: u32 = 12;

    /// The bytes of a value of a type with a fixed size; `None` for the others.
    pub fn size(kind: u32) -> Option<usize> {
        match kind {
            U8 | I8 | BOOL => Some(1),
            U16 | I16 => Some(2),
            U32 | I32 | F32 => Some(4),
            U64 | I64 | F64 => Some(8),
            _ => None,
        }
    }
}

/// The type of a tensor that is read or written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// Single precision.
    F32,
    /// Half precision.
    F16,
    /// bfloat16.
    Bf16,
    /// Blocks of 32 values of 8 bits with a scale.
    Q8_0,
    /// Blocks of 32 values of 4 bits with a scale.
    Q4_0,
    /// Blocks of 32 values of 4 bits with a scale and a minimum.
    Q4_1,
}

impl Kind {
    const ALL: [(u32, Self); 6] =
        [(0, Self::F32), (1, Self::F16), (2, Self::Q4_0), (3, Self::Q4_1), (8, Self::Q8_0), (30, Self::Bf16)];

    /// The type with this number, if it is supported.
    pub fn of(number: u32) -> Option<Self> {
        Self::ALL.into_iter().find(|(known, _)| *known == number).map(|(_, kind)| kind)
    }

    /// ggml's number of the type.
    pub fn number(self) -> u32 {
        Self::ALL.into_iter().find(|(_, known)| *known == self).map_or(0, |(number, _)| number)
    }

    /// The number of values in a block and of bytes that it takes.
    pub fn block(self) -> (usize, usize) {
        match self {
            Self::F32 => (1, 4),
            Self::F16 | Self::Bf16 => (1, 2),
            Self::Q8_0 => (BLOCK, 2 + 32),
            Self::Q4_0 => (BLOCK, 2 + 16),
            Self::Q4_1 => (BLOCK, 2 + 2 + 16),
        }
    }

    /// The bytes of `values` values; `None` if they are no whole blocks, or too many.
    pub fn bytes(self, values: u64) -> Option<u64> {
        let (block, bytes) = self.block();
        values.is_multiple_of(block as u64).then_some(())?;
        (values / block as u64).checked_mul(bytes as u64)
    }

    /// The type in which the values are given: the stored one, or f32 for quantized types.
    pub fn float(self) -> FloatType {
        match self {
            Self::F16 => FloatType::F16,
            Self::Bf16 => FloatType::BF16,
            _ => FloatType::F32,
        }
    }

    /// ggml's name of the type.
    pub fn name(self) -> &'static str {
        match self {
            Self::F32 => "F32",
            Self::F16 => "F16",
            Self::Bf16 => "BF16",
            Self::Q8_0 => "Q8_0",
            Self::Q4_0 => "Q4_0",
            Self::Q4_1 => "Q4_1",
        }
    }
}

/// ggml's names of the types that are not supported, for messages.
pub(super) fn other_name(number: u32) -> String {
    const NAMES: [(u32, &str); 19] = [
        (6, "Q5_0"),
        (7, "Q5_1"),
        (9, "Q8_1"),
        (10, "Q2_K"),
        (11, "Q3_K"),
        (12, "Q4_K"),
        (13, "Q5_K"),
        (14, "Q6_K"),
        (15, "Q8_K"),
        (16, "IQ2_XXS"),
        (17, "IQ2_XS"),
        (18, "IQ3_XXS"),
        (19, "IQ1_S"),
        (20, "IQ4_NL"),
        (21, "IQ3_S"),
        (22, "IQ2_S"),
        (23, "IQ4_XS"),
        (29, "IQ1_M"),
        (39, "MXFP4"),
    ];
    let known = NAMES.iter().find(|(known, _)| *known == number);
    known.map_or_else(|| format!("type {number}"), |(_, name)| (*name).into())
}
