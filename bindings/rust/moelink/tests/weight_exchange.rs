//! Experts' weights moved between two ranks on the host device: one round, and a model rearranged in place.

use moelink::{sys, Communicator, Group};
use std::ffi::c_void;
use std::thread;

const RANKS: usize = 2;
const LAYERS: usize = 2;
const SLOTS: usize = 3; // of a rank
const WIDTH: usize = 4; // values of an expert

fn weights(layer: usize, expert: i32) -> Vec<i32> {
    (0..WIDTH).map(|i| (layer * 10000 + i) as i32 + expert * 100).collect()
}

/// A rank's slots by layer, one after the other.
fn layers_of(rank: usize) -> Vec<Vec<i32>> {
    (0..LAYERS).map(|layer| (0..SLOTS).flat_map(|slot| weights(layer, (rank * SLOTS + slot) as i32)).collect()).collect()
}

fn slot(layers: &[Vec<i32>], layer: usize, slot: usize) -> &[i32] {
    &layers[layer][slot * WIDTH..(slot + 1) * WIDTH]
}

/// Runs each rank on a thread of its own, with a communicator over its layers.
fn on_ranks(run: fn(&mut Communicator, &mut Vec<Vec<i32>>, usize)) {
    let groups = Group::threads(RANKS as i32, sys::MOELINK_DEVICE_HOST as i32).unwrap();
    let ranks: Vec<_> = groups
        .into_iter()
        .map(|group| {
            thread::spawn(move || {
                let rank = group.rank() as usize;
                let mut layers = layers_of(rank);
                let mut comm = Communicator::new(&group, sys::MOELINK_EPLB_COMM_AUTO as i32).unwrap();
                // SAFETY: there is no NCCL, and the layers outlive the communicators of both ranks: see the barrier.
                unsafe { comm.init(&moelink::eplb_comm_params()) }.unwrap();
                for (layer, values) in layers.iter_mut().enumerate() {
                    let tensor = sys::moelink_eplb_tensor {
                        base: values.as_mut_ptr().cast::<c_void>(),
                        slot_stride: 0,
                        rows: 1,
                        row_bytes: (WIDTH * 4) as u64,
                        row_stride: 0,
                    };
                    unsafe { comm.register(layer as i32, &[tensor], SLOTS as i32) }.unwrap();
                }
                assert_eq!(comm.info().unwrap().kind, sys::MOELINK_EPLB_COMM_READ as i32);
                run(&mut comm, &mut layers, rank);
                group.barrier().unwrap();
            })
        })
        .collect();
    for (rank, one) in ranks.into_iter().enumerate() {
        one.join().unwrap_or_else(|_| panic!("rank {rank} failed"));
    }
}

#[test]
fn one_round() {
    on_ranks(|comm, layers, rank| {
        let all: Vec<i32> = (0..(RANKS * SLOTS) as i32).collect();
        let (peer, mine, theirs) = (1 - rank as i32, (rank * SLOTS) as i32, ((1 - rank) * SLOTS) as i32);
        comm.set_context(1, &all).unwrap();
        comm.send(peer, mine).unwrap();
        assert_eq!(comm.send(peer, mine).unwrap_err().status, sys::MOELINK_ERR_INVALID_ARGUMENT);
        let landing = sys::moelink_rows {
            data: layers[1][2 * WIDTH..].as_mut_ptr().cast::<c_void>(),
            row_bytes: (WIDTH * 4) as u64,
            row_stride: 0,
            dtype: sys::MOELINK_DTYPE_NONE as i32,
            reserved: 0,
        };
        unsafe { comm.receive(&[landing], peer, theirs) }.unwrap();
        comm.execute().unwrap();
        assert_eq!(slot(layers, 1, 2), weights(1, theirs));
        assert_eq!(slot(layers, 0, 2), weights(0, mine + 2));
    });
}

#[test]
fn a_model_is_rearranged() {
    on_ranks(|comm, layers, rank| {
        let from = [0, 1, 2, 3, 4, 5, 0, 1, 2, 3, 4, 5];
        let to = [3, 1, 0, 2, 4, 0, 5, 4, 3, 2, 1, 0];
        let mut shape = moelink::eplb_shape();
        (shape.layers, shape.experts, shape.slots, shape.ranks) =
            (LAYERS as i32, (RANKS * SLOTS) as i32, (RANKS * SLOTS) as i32, RANKS as i32);
        let mut params = moelink::eplb_rearrange_params();
        (params.old_map, params.new_map) = (from.as_ptr(), to.as_ptr());
        (params.old_count, params.new_count) = (from.len() as i64, to.len() as i64);
        let mut in_force = [-2; LAYERS * RANKS * SLOTS];
        let mut result = moelink::eplb_rearrange_result();
        result.map = in_force.as_mut_ptr();
        // SAFETY: the maps are as long as the shape says, and nothing is to be called.
        unsafe { comm.rearrange(&shape, &params, &mut result) }.unwrap();
        assert_eq!(in_force, to);
        assert!(result.position == result.batches && result.batches > 0);
        for layer in 0..LAYERS {
            for at in 0..SLOTS {
                let expert = to[(layer * RANKS + rank) * SLOTS + at];
                assert_eq!(slot(layers, layer, at), weights(layer, expert), "rank {rank}, layer {layer}, slot {at}");
            }
        }
    });
}
