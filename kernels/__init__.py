"""Operations on tensors that models are written over."""
