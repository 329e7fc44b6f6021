"""Every collective that the sharded layers issue or ask for, removed or broken."""

from mutant_runs import Mutant

TENSOR = "parallel/tensor.py"

MUTANTS = [
    Mutant(
        name="sums over tensor ranks removed",
        file=TENSOR,
        old="    dist.all_reduce(total, group=group)\n    return total",
        new="    return total",
        layout="tp2_sp",
    ),
    Mutant(
        name="replicated: gradient not summed",
        file=TENSOR,
        old="return tensor.view_as(tensor)\n\n    @staticmethod\n"
        "    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:\n"
        "        return _sum(gradient, ctx.group), None",
        new="return tensor.view_as(tensor)\n\n    @staticmethod\n"
        "    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:\n"
        "        return gradient, None",
        layout="tp2_sp",
    ),
    Mutant(
        name="q/k norm: squares not summed",
        file=TENSOR,
        old="return _sum(tensor, group)",
        new="return tensor.clone()",
        layout="tp2",
    ),
    Mutant(
        name="q/k norm: gradient of the squares not summed",
        file=TENSOR,
        old="        return _sum(tensor, group)\n\n    @staticmethod\n"
        "    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:\n"
        "        return _sum(gradient, ctx.group), None",
        new="        return _sum(tensor, group)\n\n    @staticmethod\n"
        "    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:\n"
        "        return gradient, None",
        layout="tp2",
    ),
    Mutant(
        name="q/k norm over the features of one tensor rank",
        file=TENSOR,
        old="        squares_N1 = _SumBothWays.apply(squares_N1, norms[0].group)",
        new="        squares_N1 = squares_N1 * norms[0].group.size()",
        layout="tp2",
    ),
    Mutant(
        name="row linear: input's gradient summed over tensor ranks",
        file=TENSOR,
        old="            allreduce_dgrad=False,\n",
        new="            allreduce_dgrad=True,\n",
        layout="tp2",
    ),
    Mutant(
        name="row linear: input gathered as if it were a shard of tokens",
        file=TENSOR,
        old="            sequence_parallel=False,\n",
        new="            sequence_parallel=True,\n",
        layout="tp2",
    ),
    Mutant(
        name="row linear: reduce-scatter without the reduction",
        file=TENSOR,
        old="return reduce_scatter_to_sequence_parallel_region(partial_LF, group=self.tp_group)",
        new="return scatter_to_sequence_parallel_region(partial_LF, group=self.tp_group)",
        layout="tp2_sp",
    ),
    Mutant(
        name="row linear: shares not summed",
        file=TENSOR,
        old="return reduce_from_tensor_model_parallel_region(partial_LF, group=self.tp_group)",
        new="return partial_LF",
        layout="tp2",
    ),
    Mutant(
        name="layers: made without sequence parallelism",
        file=TENSOR,
        old="            sequence_parallel=sequence,\n",
        new="            sequence_parallel=False,\n",
        layout="tp2_sp",
    ),
    Mutant(
        name="column linear: the text gathered as if it were a shard of tokens",
        file=TENSOR,
        old="sequence=self.shards_sequence and gather_sequence",
        new="sequence=self.shards_sequence",
        layout="tp2_sp",
    ),
    Mutant(
        name="row linear: whole sequence returned",
        file=TENSOR,
        old="options = self._options(sequence=self.shards_sequence)\n        layer = RowLinear",
        new="options = self._options(sequence=False)\n        layer = RowLinear",
        layout="tp2_sp",
    ),
    Mutant(
        name="column linear: gradient of the input not summed",
        file=TENSOR,
        old="output, _ = super().forward(x)",
        new="output = nn.functional.linear(x, self.weight, self.bias)",
        layout="tp2",
    ),
    Mutant(
        name="projections: gradient of their input not summed",
        file=TENSOR,
        old="            allreduce_dgrad=linears[0].allreduce_dgrad,\n",
        new="            allreduce_dgrad=False,\n",
        layout="tp2",
    ),
    Mutant(
        name="projections of the text: its gradient not summed under sequence parallelism",
        file=TENSOR,
        old="            allreduce_dgrad=linears[0].allreduce_dgrad,\n",
        new="            allreduce_dgrad=linears[0].allreduce_dgrad and len(linears) != 2,\n",
        layout="tp2_sp",
    ),
    Mutant(
        name="projections: sequence gathered, but its gradient scattered without the sum",
        file=TENSOR,
        old="            x,\n            torch.cat([linear.weight for linear in linears]),\n"
        "            torch.cat([linear.bias for linear in linears]),\n"
        "            gradient_accumulation_fusion=False,\n"
        "            allreduce_dgrad=linears[0].allreduce_dgrad,\n"
        "            sequence_parallel=linears[0].sequence_parallel,\n",
        new="            gather_from_sequence_parallel_region(x, tensor_parallel_output_grad=False, group=self.group)\n"
        "            if linears[0].sequence_parallel\n            else x,\n"
        "            torch.cat([linear.weight for linear in linears]),\n"
        "            torch.cat([linear.bias for linear in linears]),\n"
        "            gradient_accumulation_fusion=False,\n"
        "            allreduce_dgrad=linears[0].allreduce_dgrad,\n"
        "            sequence_parallel=False,\n",
        layout="tp2_sp",
    ),
    Mutant(
        name="replicated tensors enter the sequence shards as they are",
        file=TENSOR,
        old="return _SumGradient.apply(tensor, self.group) if self.shards_sequence else tensor",
        new="return tensor",
        layout="tp2_sp",
    ),
    Mutant(
        name="replicated tensors' gradients summed without sequence shards too",
        file=TENSOR,
        old="return _SumGradient.apply(tensor, self.group) if self.shards_sequence else tensor",
        new="return _SumGradient.apply(tensor, self.group)",
        layout="tp2",
    ),
    Mutant(
        name="scatter: tensor ranks take the shard of the first",
        file=TENSOR,
        old="return scatter_to_sequence_parallel_region(here, group=self.group) if self.shards_sequence else here",
        new="return context_shard(here, 0, self.tensor_size) if self.shards_sequence else here",
        layout="tp2_sp",
    ),
    Mutant(
        name="prediction: own shard repeated instead of gathered",
        file=TENSOR,
        old="return gather_from_sequence_parallel_region(x, tensor_parallel_output_grad=False, group=self.group)",
        new="return torch.cat([x] * self.tensor_size)",
        layout="tp2_sp",
    ),
    Mutant(
        name="prediction: gradient summed over ranks that hold the same loss",
        file=TENSOR,
        old="tensor_parallel_output_grad=False",
        new="tensor_parallel_output_grad=True",
        layout="tp2_sp",
    ),
    Mutant(
        name="Ulysses: tokens and heads not exchanged before attention",
        file=TENSOR,
        old="return all_to_all(self.context_group, sent).unbind(1)",
        new="return sent.unbind(1)",
        layout="cp2",
    ),
    Mutant(
        name="Ulysses: heads and tokens not exchanged after attention",
        file=TENSOR,
        old="received = all_to_all(self.context_group, x)",
        new="received = x",
        layout="cp2",
    ),
]
