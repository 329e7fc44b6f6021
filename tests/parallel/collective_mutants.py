"""Every collective that `parallel/` issues or asks for outside of its layers, removed or broken."""

from mutant_runs import Mutant

PIPELINE, STAGE, RUNTIME, ENGINE, ZERO = (
    f"parallel/{name}.py" for name in ("pipeline", "stage", "runtime", "engine", "zero")
)

PIPELINE_MUTANTS = [
    Mutant(
        name="schedule without messages between stages",
        file=PIPELINE,
        old="return get_forward_backward_func()(",
        new="return __import__(\n            'megatron.core.pipeline_parallel.schedules', fromlist=['x']\n"
        "        ).forward_backward_no_pipelining(",
        layout="pp2",
    ),
    Mutant(
        name="interleaved messages in batches",
        file=PIPELINE,
        old="batch_p2p_comm=False",
        new="batch_p2p_comm=True",
        layout="pp2_v2",
    ),
    Mutant(
        name="messages between stages of the whole sequence's shape",
        file=PIPELINE,
        old="sequence_parallel=grid.dims.shards_sequence",
        new="sequence_parallel=False",
        layout="tp2_pp2",
    ),
    Mutant(
        name="predictions not sent to the other stages",
        file=PIPELINE,
        old="            dist.broadcast(stacked, src=last, group=grid.pipeline_group)",
        new="            stacked = stacked if grid.is_last_stage else torch.zeros_like(stacked)",
        layout="pp2",
        check="steps",
    ),
    Mutant(
        name="predictions of the context ranks not gathered",
        file=PIPELINE,
        old="            dist.all_gather(shards, stacked, group=grid.context_group)",
        new="            shards = [stacked] * grid.context_size",
        layout="cp2",
        check="steps",
    ),
    Mutant(
        name="gradients of what every stage holds not summed",
        file=STAGE,
        old="    dist.all_reduce(flat, group=grid.pipeline_group)\n",
        new="",
        layout="pp2",
    ),
    Mutant(
        name="gradients of what every stage holds summed twice",
        file=STAGE,
        old="    dist.all_reduce(flat, group=grid.pipeline_group)\n",
        new="    dist.all_reduce(flat, group=grid.pipeline_group)\n"
        "    dist.all_reduce(flat, group=grid.pipeline_group)\n",
        layout="pp2",
    ),
    Mutant(
        name="step: the sum over stages forgotten",
        file=ENGINE,
        old="        sum_over_stages(self.grid, [g for name, g in gradients.items() if is_on_every_stage(name)])\n",
        new="",
        layout="pp2",
    ),
]

GRID_MUTANTS = [
    Mutant(
        name="weight of the global batch not summed over data ranks",
        file=RUNTIME,
        old="            dist.all_reduce(total, group=self.data_group)",
        new="            total *= self.data_size",
        layout="dp2",
        check="steps",
    ),
    Mutant(
        name="step: weight of this rank's packs in place of the global batch's",
        file=ENGINE,
        old="weight = float(self.grid.sum_over_data(local))",
        new="weight = float(local) * self.grid.data_size",
        layout="dp2",
        check="steps",
    ),
    Mutant(
        name="step: the loss of one rank reported as the global one",
        file=ENGINE,
        old="        dist.all_reduce(sums)\n",
        new="",
        layout="dp2",
        check="steps",
    ),
    Mutant(
        name="any: own flag only",
        file=RUNTIME,
        old="        dist.all_reduce(found, op=dist.ReduceOp.MAX)\n",
        new="",
        layout="dp2",
        check="grid",
    ),
    Mutant(
        name="sum_over_ranks: own value only",
        file=RUNTIME,
        old="            dist.all_reduce(total)\n",
        new="            pass\n",
        layout="dp2",
        check="grid",
    ),
    Mutant(
        name="hand_on: packs not handed on",
        file=RUNTIME,
        old="        dist.broadcast(passed, src=dist.get_global_rank(self.pack_group, 0), group=self.pack_group)\n",
        new="",
        layout="tp2",
        check="grid",
    ),
    Mutant(
        name="hand_on: to the ranks of other packs too",
        file=RUNTIME,
        old="dist.get_global_rank(self.pack_group, 0), group=self.pack_group",
        new="0",
        layout="dp2",
        check="grid",
    ),
    Mutant(
        name="gather_objects: own size only",
        file=RUNTIME,
        old="        dist.all_gather(sizes, torch.tensor([text.numel()], device=self.device))\n",
        new="        sizes = [torch.tensor([text.numel()])] * self.world_size\n",
        layout="dp2",
        check="grid",
    ),
    Mutant(
        name="gather_objects: own text only",
        file=RUNTIME,
        old="        dist.all_gather(texts, padded)\n",
        new="        texts = [padded] * self.world_size\n",
        layout="dp2",
        check="grid",
    ),
    Mutant(
        name="barrier: nobody waits",
        file=RUNTIME,
        old="        else:\n            dist.barrier()",
        new="        else:\n            pass",
        layout="dp2",
        check="grid",
    ),
    Mutant(
        name="replicas: copies not compared",
        file=STAGE,
        old="    dist.all_gather(everyone, mine, group=group)\n",
        new="    everyone = [mine] * group.size()\n",
        layout="dp2",
        check="replicas",
    ),
    Mutant(
        name="replicas: copies on tensor ranks not compared",
        file=STAGE,
        old="grid.tensor_group, [n for n in names if n not in sharded]",
        new="grid.tensor_group, []",
        layout="tp2",
        check="replicas",
    ),
    Mutant(
        name="replicas: copies on stages not compared",
        file=STAGE,
        old="grid.pipeline_group, [n for n in names if is_on_every_stage(n)]",
        new="grid.pipeline_group, []",
        layout="pp2",
        check="replicas",
    ),
    Mutant(
        name="replicas: a problem refused where it was seen only",
        file=STAGE,
        old="if grid.any(problem is not None):\n"
        "        raise ValueError(next(filter(None, grid.gather_objects(problem))))",
        new="if problem is not None:\n        raise ValueError(problem)",
        layout="tp2_pp2",
        check="replicas",
    ),
    Mutant(
        name="replicas: a problem told where it was seen only",
        file=STAGE,
        old="next(filter(None, grid.gather_objects(problem)))",
        new="str(problem)",
        layout="tp2_pp2",
        check="replicas",
    ),
    Mutant(
        name="replicas: an engine starts with unequal weights",
        file=ENGINE,
        old="        check_replicas(grid, initial, self._zero.sharded)\n",
        new="",
        layout="dp2",
        check="replicas",
    ),
    Mutant(
        name="replicas: an engine's check does nothing",
        file=ENGINE,
        old="        check_replicas(self.grid, self._zero.local_weights(),",
        new="        (lambda *_, **__: None)(self.grid, self._zero.local_weights(),",
        layout="dp2",
        check="replicas",
    ),
]

ZERO_MUTANTS = [
    Mutant(
        name="saved state: parts of a cut parameter not put together",
        file="parallel/fragments.py",
        old="        dist.reduce(\n            whole,",
        new="        (lambda *_, **__: None)(\n            whole,",
        layout="dp2",
        check="steps",
    ),
    Mutant(
        name="DeepSpeed told of no model-parallel ranks",
        file=ZERO,
        old="mpu=MpuAdapter(grid)",
        new="mpu=None",
        layout="tp2_sp",
        check="steps",
    ),
    Mutant(
        name="ZeRO-0: gradients not averaged over replicas",
        file=ZERO,
        old="        self._engine.step()",
        new="        self._engine.enable_backward_allreduce = False\n        self._engine.step()",
        layout="dp2_z0",
        check="steps",
    ),
    Mutant(
        name="ZeRO-1: gradients not averaged over replicas",
        file=ZERO,
        old="        self._engine.step()",
        new="        self._optimizer.allreduce_bucket = lambda bucket, *_, **__: self._optimizer.flatten(bucket)\n"
        "        self._engine.step()",
        layout="dp2",
        check="steps",
    ),
    Mutant(
        name="ZeRO-1, bf16: gradients not averaged over replicas",
        file=ZERO,
        old="        self._engine.step()",
        new="        self._engine.enable_backward_allreduce = False\n        self._engine.step()",
        layout="dp2_bf16",
        check="steps",
    ),
    Mutant(
        name="ZeRO-2: gradients not averaged over replicas",
        file=ZERO,
        old="        self._engine.backward(loss)",
        new="        self._optimizer.allreduce_bucket = lambda bucket, *_, **__: self._optimizer.flatten(bucket)\n"
        "        self._engine.backward(loss)",
        layout="dp2_z2",
        check="steps",
    ),
    Mutant(
        name="ZeRO-3: gradients not averaged over replicas",
        file=ZERO,
        old="        self._engine.backward(loss)",
        new="        n, r = self._grid.replica_size, self._grid.replica_rank\n"
        "        deepspeed.runtime.zero.stage3.reduce_scatter_coalesced = lambda tensors, _: [\n"
        "            torch.nn.functional.pad(t.flatten(), (0, -t.numel() % n)).chunk(n)[r].clone() for t in tensors\n"
        "        ]\n"
        "        self._engine.backward(loss)",
        layout="dp2_z3",
        check="steps",
    ),
    Mutant(
        name="ZeRO-3: forward around DeepSpeed",
        file=ZERO,
        old="return self._engine(inputs)",
        new="return self._engine.module(inputs)",
        layout="dp2_z3",
        check="steps",
    ),
    Mutant(
        name="ZeRO-3: weights of a block gathered module by module",
        file=ZERO,
        old="            deepspeed.utils.set_z3_leaf_modules(stage, [Block, Head])\n",
        new="",
        layout="dp2_z3",
        check="steps",
    ),
    Mutant(
        name="ZeRO-1: averaged weights not sent to the replicas",
        file=ZERO,
        old="                self._optimizer.update_lp_params()",
        new="                pass",
        layout="dp2",
        check="steps",
    ),
    Mutant(
        name="ZeRO-3: whole weights of the last forward kept",
        file=ZERO,
        old="                self._optimizer._partition_all_parameters()\n",
        new="",
        layout="dp2_z3",
        check="steps",
    ),
    Mutant(
        name="ZeRO-3: weights not taken from the masters",
        file=ZERO,
        old="                    self._optimizer._reassign_or_swap_out_partitioned_parameters(index)",
        new="                    pass",
        layout="dp2_z3",
        check="steps",
    ),
    Mutant(
        name="ZeRO-0: norm of one tensor rank",
        file=ZERO,
        old="clip_grad_norm_(list(self.named.values()), self._clip_norm, mpu=self._engine.mpu)",
        new="clip_grad_norm_(list(self.named.values()), self._clip_norm)",
        layout="tp2_z0",
        check="steps",
    ),
]

MUTANTS = [*PIPELINE_MUTANTS, *GRID_MUTANTS, *ZERO_MUTANTS]
