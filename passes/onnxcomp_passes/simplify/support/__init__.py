"""What the simplify passes share: proofs about shapes, dead nodes, weights of linear operators."""
