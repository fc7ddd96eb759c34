//! Turns clip.onnx into Burn code and its weights, in OUT_DIR.

use burn_onnx::{LoadStrategy, ModelGen};

fn main() {
    // The weights become part of the program: they are small here. With LoadStrategy::File they stay a .bpk file.
    ModelGen::new().input("clip.onnx").out_dir("model/").load_strategy(LoadStrategy::Embedded).run_from_script();
}
