# One line each: the work is in fedbone/__main__.py, so that everything runs without make too.
PYTHON ?= python3
# make run PROFILE=t4 (cpu, t4, t4-article, a100): which network, film size and device; lab takes it too
profile = $(if $(PROFILE),--profile $(PROFILE))

.PHONY: run test test-all lab notebooks clean

run:        ## build the environment once, execute the notebooks, leave build/workbook/index.html
	$(PYTHON) -m fedbone workbook $(profile)

test:       ## unit tests, then every notebook against its stored results
	$(PYTHON) -m fedbone test

test-all:   ## slow tests, the whole workbook, the check that every pin has a wheel
	$(PYTHON) -m fedbone test-all

lab:        ## JupyterLab on notebook 00
	$(PYTHON) -m fedbone lab $(profile)

notebooks:  ## execute all notebooks and write their outputs back, ready to commit
	$(PYTHON) -m fedbone notebooks

clean:      ## remove what runs leave behind; the environment and data/sample stay
	$(PYTHON) -m fedbone clean
