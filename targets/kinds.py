"""What each kind of machine is described by: the constants with their units, and the choices by name."""

from __future__ import annotations

from collections.abc import Mapping

# The constants that each kind of model needs, with the unit it expects them in.
KINDS: Mapping[str, Mapping[str, str]] = {
    "cpu": {
        "memory_bandwidth": "byte/s",
        "compute_rate": "op/s",
        "board_power": "W",
        "cache_bits": "bit",  # of a cached number in memory
    },
    "attentionlego": {
        "clock": "Hz",
        "macros": "1",  # on a chip; 0: as many as the model and its cache need
        "chips": "1",  # that share every matrix, joined by links
        "macro_rows": "1",
        "macro_columns": "1",
        "weight_bits": "bit",
        "projection_cycles": "cycle",
        "score_cycles_per_key": "cycle",
        "ideal_cycles_per_64_keys": "cycle",
        "key_write_cycles": "cycle",
        "softmax_lanes": "1",
        "vector_lanes": "1",
        "bus_width": "bit",
        "mac_energy": "J/op",
        "vector_energy": "J/op",
        "leakage": "W/byte",
        "macro_area": "mm2",
        "cell_area": "um2/bit",  # of it, that leaks as memory does
        "logic_leakage": "W/mm2",
        "vector_area": "um2",  # of a lane
        "softmax_area": "um2",
        "bus_area": "mm2/bit",
        "dram_energy": "J/byte",  # of weights that pass through, where the macros hold not all
        "write_energy": "J/byte",  # into a macro
        "dram_idle": "W/(byte/s)",
        "link_bandwidth": "byte/s",  # of a chip
        "link_energy": "J/byte",
        "link_area": "mm2/(byte/s)",
    },
    "pim": {
        "clock": "Hz",  # highest; the array's own critical path may be slower
        "arrays": "1",  # on a tile; 0: as many as the model needs, all together
        "tiles": "1",  # on a chip, each with arrays, SRAM, units and a network of its own
        "chips": "1",  # that share every matrix, joined by links; each has its DRAM
        "rows": "1",
        "outputs": "1",  # words an array's row holds
        "weight_bits": "bit",  # held per weight in the array
        "transfer_bits": "bit",  # moved per weight when one is loaded; 0: as many as the file stores
        "input_bits": "bit",
        "bits_per_cycle": "bit",
        "adc_bits": "bit",  # effective; analog arrays only
        "rows_active": "1",  # word lines high at a time, 0: as many as the converter resolves; ones-splitting only
        "ones_density": "1",  # share of ones in an input bit plane; analog and ones-splitting arrays
        "voltage": "V",
        "cell_area": "um2/bit",
        "leakage": "W/byte",  # of everything that stores
        "write_energy": "J/byte",  # into an array
        "write_bandwidth": "byte/s",  # into all arrays together
        "vector_lanes": "1",
        "vector_energy": "J/op",
        "softmax_lanes": "1",
        "softmax_energy": "J/op",  # of one score, from logit to probability
        "requantize_lanes": "1",
        "requantize_energy": "J/op",  # of one output of a product, until it is the next product's input
        "attention_macs": "op/cycle",
        "attention_energy": "J/op",  # of one multiply-accumulate of scores or values
        "cache_bits": "bit",
        "cache_capacity": "byte",  # on chip; what is beyond lies in DRAM
        "sram_energy": "J/byte",
        "sram_area": "mm2/byte",
        "dram_bandwidth": "byte/s",
        "dram_energy": "J/byte",
        "network_bandwidth": "byte/s",
        "network_energy": "J/byte",
        "read_energy": "J/byte",  # of weights from an array whose units stand beside it: sdr only
        "input_toggles": "1",  # share of cycles in which an input bit changes
        "weight_ones": "1",  # share of ones among the bits of weights
        "node": "nm",  # of the arrays' logic; not for sdr, whose units are of 28 nm
        "columns_per_adc": "1",  # bit lines that take turns at one converter
        "adc_rate": "Hz",  # of a converter behind a sample and hold; 0: by the macro equations, settling included
        "adc_area": "um2/Hz",  # of a converter with adc_rate, for each sample a second; 0: by the macro equations
        "logic_leakage": "W/mm2",  # of all that is no memory cell
        "vector_area": "um2",  # of a lane, as the next two
        "softmax_area": "um2",
        "requantize_area": "um2",
        "attention_area": "um2",  # of one product a cycle
        "write_area": "mm2/(byte/s)",
        "network_area": "mm2/(byte/s)",
        "dram_area": "mm2/(byte/s)",  # of the interface
        "dram_idle": "W/(byte/s)",  # of the memory, transfer or not
        "link_bandwidth": "byte/s",  # of a chip
        "link_energy": "J/byte",
        "link_area": "mm2/(byte/s)",
    },
    "stream": {
        "clock": "Hz",
        "macs": "op/cycle",
        "mac_energy": "J/op",
        "mac_area": "um2",
        "weight_bits": "bit",  # of a stored weight that is not zero; 0: as the file stores it
        "activation_bits": "bit",  # what is computed with (also eval --emulate)
        "activation_groups": "1",  # of channels whose units are powers of two apart; each is a shift of an accumulator
        "planes": "1",  # 0: elements multiply whole numbers; 1: lanes that count bits, a cycle for each pair of planes
        "density": "1",  # share of weights that are not zero; below 1 a bit mask is stored
        "skips_zeros": "1",  # 1: products with weights that the file says are zeros take no cycle
        "weight_capacity": "byte",  # on chip, for weights
        "weight_bandwidth": "byte/s",
        "weight_energy": "J/byte",
        "weight_area": "mm2/byte",
        "weight_leakage": "W/byte",
        "weight_write_energy": "J/byte",  # of rewriting that memory, as the next one
        "weight_write_bandwidth": "byte/s",
        "buffer_capacity": "byte",  # SRAM for activations and the key-value cache
        "buffer_energy": "J/byte",
        "buffer_area": "mm2/byte",
        "buffer_leakage": "W/byte",
        "vector_lanes": "1",
        "vector_energy": "J/op",
        "cache_bits": "bit",
        "dram_bandwidth": "byte/s",
        "dram_energy": "J/byte",
        "logic_leakage": "W/mm2",
        "vector_area": "um2",  # of a lane
        "port_area": "mm2/(byte/s)",  # of the weight memory
        "dram_area": "mm2/(byte/s)",
        "dram_idle": "W/(byte/s)",
    },
}

# Rates and cycle counts that have no part whose area or power would pay for better ones, with the end of the range that
# is the better one: --set and --vary go as far as a target's range does, a file states what it can give a source for.
UNPAID: Mapping[str, str] = {
    "clock": "high", "projection_cycles": "low", "score_cycles_per_key": "low", "ideal_cycles_per_64_keys": "low",
    "key_write_cycles": "low",
}  # fmt: skip

# Choices by name that a kind asks for.
CHOICES: Mapping[str, Mapping[str, tuple[str, ...]]] = {
    "pim": {"array": ("digital", "analog", "ones-splitting", "sdr"), "adc_law": ("survey", "isaac", "pow2")},
}
