//! Temporary.
use basic_train::backbones::*;
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;
fn main() {
    let a: Vec<String> = std::env::args().collect();
    let device = basic_core::DeviceSpec::Cpu.open().unwrap();
    let config = BackboneConfig { seed: 0, language_steps: a[2].parse().unwrap(), tower_steps: a[3].parse().unwrap() };
    let start = std::time::Instant::now();
    let s = make_backbones(std::path::Path::new(&a[1]), &config, &device, true, &mut |stage, step, steps, loss| {
        if step % 20 == 0 { println!("{stage} {step}/{steps} {loss:.4} {:.1}s", start.elapsed().as_secs_f32()) }
    }).unwrap();
    println!("{}", serde_json::to_string(&s).unwrap());
}
