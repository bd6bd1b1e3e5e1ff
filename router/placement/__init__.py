"""Which engine a request goes to: costs, policies, and what each engine has cached."""
