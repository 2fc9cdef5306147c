def page(c): return ''
def summary(c): return ''
