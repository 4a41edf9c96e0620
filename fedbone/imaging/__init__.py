"""Films: read, labelled, checked, made anonymous, and simulated.

Reading    dicom (a film from a file, or a folder of them) <- dicom_file, pixels, codestream, voi, polarity, shutter,
           grey, spacing, frame, refusal
Labels     coco, folder (own hospitals), dataset; quality <- readings, matching
De-id      deidentify_folder <- deidentify, confidentiality, pseudonyms
Simulator  hospitals <- sites, patients; skeleton <- bones, meshes, spine, upper_limbs; radiograph <- bone_paths,
           tissue, projection; film_files <- film_header (the films as DICOM)
"""
