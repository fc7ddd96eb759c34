//! Finds out what is wrong with a safetensors file that the parser refused, and names the tensor.

use serde_json::{Map, Value};

/// The longest header that the format allows.
const MAX_HEADER: u64 = 100_000_000;

/// The longest header that is parsed a second time as a tree, which takes many times its length.
const MAX_TREE: u64 = 16 << 20;

/// Looks for the common kinds of damage; `None` if it finds none of them.
pub(super) fn diagnose(file: &[u8]) -> Option<String> {
    let length = file.len() as u64;
    let Some(size) = file.first_chunk::<8>() else {
        return Some(format!("it has {length} bytes, not even the header's length"));
    };
    let size = u64::from_le_bytes(*size);
    if size > length - 8 {
        return Some(format!("its header claims {size} bytes, the file has {length}"));
    }
    if size > MAX_HEADER {
        return Some(format!("its header claims {size} bytes, more than the {MAX_HEADER} that are allowed"));
    }
    if size > MAX_TREE {
        return None;
    }
    let header: Map<String, Value> = serde_json::from_slice(file.get(8..8 + size as usize)?).ok()?;
    let data = length - 8 - size;
    let mut spans = Vec::new();
    for (name, info) in header.iter().filter(|(name, _)| *name != "__metadata__") {
        let offsets = info.get("data_offsets")?.as_array()?;
        let (start, end) = (offsets.first()?.as_u64()?, offsets.get(1)?.as_u64()?);
        if end < start {
            return Some(format!("tensor {name} ends at byte {end}, before it begins at {start}"));
        }
        if end > data {
            return Some(format!("tensor {name} ends at byte {end} of {data}"));
        }
        let shape = info.get("shape")?.as_array()?;
        let count = shape.iter().try_fold(1u64, |count, n| count.checked_mul(n.as_u64()?));
        let size = element_size(info.get("dtype")?.as_str()?)?;
        if count.and_then(|count| count.checked_mul(size)) != Some(end - start) {
            let shape = Value::from(shape.clone());
            return Some(format!(
                "tensor {name} of shape {shape} and {size} bytes an element has {} bytes",
                end - start
            ));
        }
        spans.push((start, end, name));
    }
    spans.sort();
    let mut covered = 0;
    let mut last = None;
    for (start, end, name) in spans {
        if start < covered {
            return Some(format!("tensors {} and {name} overlap", last.unwrap_or("")));
        }
        if start > covered {
            return Some(format!("no tensor holds the bytes from {covered} to {start}, before tensor {name}"));
        }
        (covered, last) = (end, Some(name.as_str()));
    }
    (covered < data).then(|| format!("{} bytes lie behind the last tensor", data - covered))
}

fn element_size(dtype: &str) -> Option<u64> {
    Some(match dtype {
        "F64" | "I64" | "U64" => 8,
        "F32" | "I32" | "U32" => 4,
        "F16" | "BF16" | "I16" | "U16" => 2,
        "I8" | "U8" | "BOOL" | "F8_E4M3" | "F8_E5M2" => 1,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(header: &str, data: usize) -> Vec<u8> {
        [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), &vec![0; data]].concat()
    }

    #[test]
    fn the_tensor_at_fault_is_named() {
        let tensor = |name: &str, shape: &str, span: &str| {
            format!(r#""{name}": {{"dtype": "F32", "shape": {shape}, "data_offsets": {span}}}"#)
        };
        let two = |a: &str, b: &str| format!("{{{}, {}}}", tensor("a", "[2]", a), tensor("b", "[2]", b));
        for (header, data, said) in [
            (two("[0, 8]", "[4, 12]"), 12, "tensors a and b overlap"),
            (two("[0, 8]", "[12, 20]"), 20, "from 8 to 12, before tensor b"),
            (two("[0, 8]", "[8, 16]"), 12, "tensor b ends at byte 16 of 12"),
            (two("[0, 8]", "[16, 8]"), 16, "tensor b ends at byte 8, before"),
            (two("[0, 8]", "[8, 16]"), 20, "4 bytes lie behind"),
            (format!("{{{}}}", tensor("a", "[3]", "[0, 8]")), 8, "tensor a of shape [3]"),
            (format!("{{{}}}", tensor("a", "[4611686018427387904, 4]", "[0, 8]")), 8, "tensor a of shape"),
        ] {
            let reason = diagnose(&file(&header, data)).unwrap();
            assert!(reason.contains(said), "{reason}");
        }
        assert!(diagnose(&(1u64 << 40).to_le_bytes()).unwrap().contains("1099511627776"));
        assert!(diagnose(b"abc").unwrap().contains("3 bytes"));
        assert_eq!(diagnose(&file(&two("[0, 8]", "[8, 16]"), 16)), None);
    }
}
