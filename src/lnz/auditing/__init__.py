"""The gradient audit: does ∇ log Z = E[-∇E] hold for this energy?"""
