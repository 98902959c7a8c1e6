"""What tests share: tiny models, small mirrors and result trees."""
