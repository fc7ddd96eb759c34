//! BASIC's supervision on a decoder of your own: what is observed while its layers run, and the losses behind it.
//!
//!     cargo run -p basic-core --example own_decoder
//!
//! A decoder of four random attention layers reads one sequence: a token, four visual embeddings `v`, and five tokens of
//! text. Its first two layers supervise `v`. A real decoder has norms, MLPs and rotary positions; the calls are the same.

use basic_core::ops::attention;
use basic_core::{Basic, DeviceSpec, Heads, ImageSpan, Objective, Seen, Supervised, Supervision, SupervisionLayout};
use burn::tensor::{Distribution, Int, Tensor};

const LAYERS: usize = 4;
const HEADS: usize = 2;
const WIDTH: usize = 8;
const LENGTH: usize = 10;
const PATCHES: usize = 4;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let device = "auto".parse::<DeviceSpec>()?.open()?.autodiff();
    let normal = |scale: f64| Distribution::Normal(0.0, scale);
    let random = |shape: [usize; 2], scale: f64| Tensor::<2>::random(shape, normal(scale), &device);
    let layers: Vec<[Tensor<2>; 4]> = (0..LAYERS).map(|_| [(); 4].map(|()| random([WIDTH, WIDTH], 0.3))).collect();
    let table = random([32, WIDTH], 1.0);
    let (before, after) = (random([1, WIDTH], 1.0), random([LENGTH - 1 - PATCHES, WIDTH], 1.0));
    let mut v = random([PATCHES, WIDTH], 1.0);

    // Where the visual embeddings stand, and the rows of text whose attention weighs them.
    let image = ImageSpan {
        sample: 0,
        row: 0,
        positions: (1..1 + PATCHES).collect(),
        text_rows: (1 + PATCHES..LENGTH).collect(),
    };
    let layout = SupervisionLayout { batch: 1, sequence: LENGTH, images: vec![image] };
    // The paper's lambdas, 1 and 0.01, are for models thousands of times wider.
    let objective = Objective::from(Basic { lambda_sds: 0.5, ..Basic::default() });
    // The first key that each query sees: none is padding, and there is one sample in the row.
    let first = Tensor::<2, Int>::zeros([1, LENGTH], &device);

    for step in 0..=100 {
        v = v.detach().require_grad();
        let mut hidden: Tensor<3> = Tensor::cat(vec![before.clone(), v.clone(), after.clone()], 0).unsqueeze();
        let mut supervision = Supervision::new(&objective, LAYERS, &layout, &device).ok_or("nothing is supervised")?;
        for (index, [q, k, value, out]) in layers.iter().enumerate() {
            let heads = |weight: &Tensor<2>| {
                let x = hidden.clone().matmul(weight.clone().unsqueeze());
                x.reshape([1, LENGTH, HEADS, WIDTH / HEADS])
            };
            let (q, k, value) = (heads(q), heads(k), heads(value));
            let read = attention(q.clone(), k.clone(), value, first.clone());
            hidden = hidden + read.output.reshape([1, LENGTH, WIDTH]).matmul(out.clone().unsqueeze());
            // A layer that does not supervise is left out.
            let seen = Seen { q, k, lse: read.lse, first: first.clone(), cap: None };
            supervision.observe(index, &hidden, &seen);
        }
        let supervised = Supervised {
            v: &v,
            table: &table,
            features: None,
            other_features: None,
            heads: &Heads::default(),
            layout: &layout,
            image_samples: layout.image_samples(),
        };
        // The language-model loss of your training loop stands in the place of the zero.
        let lm = Tensor::<1>::zeros([1], &device);
        let losses = objective.losses(lm, Some(supervised), Some(&supervision.finish()));
        if step % 25 == 0 {
            let values = losses.clone().map(|_, value| value.into_scalar::<f32>());
            let named: Vec<String> = values.named().map(|(name, value)| format!("{name} {value:.4}")).collect();
            println!("step {step:3}  {}", named.join("  "));
        }
        let gradients = losses.total().backward();
        let gradient = v.grad(&gradients).ok_or("v has a gradient")?;
        v = v.detach() - Tensor::from_inner(gradient) * 0.5;
    }
    Ok(())
}
