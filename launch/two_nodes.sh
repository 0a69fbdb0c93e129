#!/bin/bash
# Train on two (or NODES) machines without a scheduler, with torchrun. The same command on each, with FIRST the same:
#
#   FIRST=10.0.0.1 launch/two_nodes.sh --config configs/imagenet_vit_b.yaml --data.root /data/imagenet --run.dir /shared/runs
#
# FIRST is the first machine, whose PORT (29400) the others reach. A machine that is started anew joins again; ranks that are
# killed start again from the last checkpoint, RESTARTS times.
set -eu
: "${FIRST:?the address of the first machine}"
# torch's launchers would tell one that joins later nothing of the store that they keep.
export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1
exec torchrun --nnodes "${NODES:-2}" --nproc-per-node "${RANKS_PER_NODE:-gpu}" --max-restarts "${RESTARTS:-3}" \
    --rdzv-backend c10d --rdzv-endpoint "$FIRST:${PORT:-29400}" --rdzv-id "${JOB:-rlpheads}" \
    --shutdown-timeout 300 \
    "$(dirname "$0")/../engine/train.py" "$@"
