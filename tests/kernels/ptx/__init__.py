"""The scan's kernels as they are compiled for a GPU, executed on a CPU.

XLA compiles a Pallas kernel to PTX for a GPU that need not be there (extra `gpu-check`), and an
interpreter in NumPy executes the PTX, all threads at once. Results are compared with the float64
oracle. Reported as faults: accesses out of bounds or misaligned, numbers that nobody wrote, races,
copies that are not waited for, and barriers that wait forever.

One case, or all of those that the slow tests run, for the checkout in the current directory:

    export PYTHONPATH=$PWD
    python -m tests.kernels.ptx pallas_mosaic batch=1,length=129,channels=131,state=16,segments=3,\
options=Dzbhsor,u=bfloat16,delta=bfloat16,z=bfloat16,BC=bfloat16
    python -m tests.kernels.ptx pallas_mosaic

`cases.Case` lists the fields; options are letters. `--seed 0 --contract` executes the kernels with
approximate instructions as wrong as PTX allows, and with products and sums fused. Compiled kernels
are kept in `$SISMA_JAX_TESTS_CACHE`, by their program.

Modules, in reading order:
    text          PTX text as instructions
    machine       executes them; control, arithmetic, transfers and copies are the instructions
    memory        bounds, alignment and unwritten numbers
    order         what is ordered before what, and hence what is a race
    groups        asynchronous copies, and which of them a thread has waited for
    floats        single-precision arithmetic, and approximate instructions as wrong as PTX allows
    contraction   products and sums fused, as ptxas may
    launches      grid, shared memory and parameters of a launch
    compiling     kernels to PTX
    programs      JAX functions with kernels in them
    cases         scans, and what they are compared with
    spoiling      kernels with a fault in one place

Not shown by it: what ptxas makes of the PTX, timing, the memory model beyond races, XLA's launch on
a device, and the real errors of approximate instructions.
"""
